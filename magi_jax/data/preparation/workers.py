"""Runs a function on a list of items in worker processes, and survives crashes and hangs of a worker.

Video decoders are native code: a file may crash its process or hang in it. Both cost only that item.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any


@dataclasses.dataclass(frozen=True)
class WorkerFailure:
    """Replaces a result if the process ended (on a timeout if `timed_out`) or the function `raised` an exception."""

    timed_out: bool
    cause: str
    raised: bool = False


def run_ordered(
    function: Callable[[Any], Any], items: Iterable[Any], processes: int, timeout: float, ahead: int = 32
) -> Iterator[Any]:
    """Run `map(function, items)` in other processes, in order.

    Args:
      function: function that is importable by its name.
      items: items, read lazily.
      processes: number of processes, at least 1.
      timeout: seconds for one item. Then its process is ended, even inside native code.
      ahead: number of results per process that may wait for an earlier, slower item.

    Yields:
      The result of each item, or a WorkerFailure if it timed out, ended its process twice, or raised an exception.
    """
    pool, numbered = _WorkerPool(function, processes, timeout), enumerate(items)
    results: dict[int, Any] = {}
    next_number = 0
    try:
        while pool.assign(numbered, ahead * processes - len(results)):
            results |= pool.collect()
            while next_number in results:
                yield results.pop(next_number)
                next_number += 1
    finally:
        pool.stop()


class _WorkerPool:
    """The workers, and the item of each busy worker."""

    def __init__(self, function: Callable[[Any], Any], processes: int, timeout: float):
        self._function, self._processes, self._timeout = function, processes, timeout
        self._idle: list[_Worker] = []
        self._busy: dict[connection.Connection, tuple[_Worker, int, Any]] = {}
        self._retries: list[tuple[int, Any]] = []
        self._retried: set[int] = set()

    def assign(self, items: Iterator[tuple[int, Any]], limit: int) -> bool:
        """Give items to workers while fewer than `limit` are busy. Return True if any worker is busy."""
        while len(self._busy) < self._processes:
            if self._retries:
                number, item = self._retries.pop()
            elif len(self._busy) >= limit or (next_item := next(items, None)) is None:
                break
            else:
                number, item = next_item
            worker = self._idle.pop() if self._idle else _Worker(self._function, self._timeout)
            worker.send(item)
            self._busy[worker.pipe] = worker, number, item
        return bool(self._busy)

    def collect(self) -> dict[int, Any]:
        """Wait for at least one worker. Return {number of the item: its result}, without items that are retried."""
        results = {}
        for pipe in connection.wait(list(self._busy)):
            worker, number, item = self._busy.pop(pipe)
            result = worker.receive()
            if not isinstance(result, WorkerFailure) or result.raised:
                self._idle.append(worker)
            elif not result.timed_out and number not in self._retried:  # another cause is possible, so retry once
                self._retried.add(number)
                self._retries.append((number, item))
                continue
            results[number] = result
        return results

    def stop(self) -> None:
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            worker.stop()


class _Worker:
    def __init__(self, function: Callable[[Any], Any], timeout: float):
        # A server without threads forks the workers. Forking this process is not safe, because it may run threads of
        # jax. Starting a new Python after each crash is slow.
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__, function.__module__])
        self.pipe, worker_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, timeout, worker_pipe), daemon=True)
        self._process.start()
        worker_pipe.close()  # so that the pipe closes when the worker ends

    def send(self, item: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; `receive` reports it
            self.pipe.send(item)

    def receive(self) -> Any:
        """Return the result, or a WorkerFailure if the process has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.pipe.close()
            return _exit_cause(self._process.exitcode)

    def stop(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _exit_cause(status: int) -> WorkerFailure:
    if status == -signal.SIGALRM:
        return WorkerFailure(True, 'gave no result in time')
    return WorkerFailure(False, f'died: {signal.strsignal(-status)}' if status < 0 else f'exit status {status}')


def _serve(function: Callable[[Any], Any], timeout: float, pipe: connection.Connection) -> None:
    """Serve items until the parent process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    # The default action of this signal ends the process, even inside native code and without a parent process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            result = function(item)
        except Exception as error:  # noqa: BLE001 -- an error of one item must not end the others
            message = ' '.join(str(error).split())  # one line
            result = WorkerFailure(False, f'{type(error).__name__}: {message}', raised=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(result)
        except BrokenPipeError:
            return
