"""Processes that work through a list, and survive what one item does to one of them.

Decoders are native code: a file may crash its process or hang in it. Both cost that item, nothing else.
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
    """In place of a result: the process ended, because it `timed_out` or of another cause, or the function `raised`."""

    timed_out: bool
    cause: str
    raised: bool = False


def run_ordered(
    function: Callable[[Any], Any], items: Iterable[Any], processes: int, timeout: float, ahead: int = 32
) -> Iterator[Any]:
    """`map(function, items)` in other processes, in order.

    Args:
      function: importable by its name.
      items: read as they are needed.
      processes: how many, at least 1.
      timeout: seconds for one item; its process is ended then, in native code as well.
      ahead: how many results per process may wait for a slow one before them.

    Yields:
      The result of each item, or `Died` when it timed out, ended its process twice, or raised an exception.
    """
    crew, numbered = _WorkerPool(function, processes, timeout), enumerate(items)
    results: dict[int, Any] = {}
    following = 0
    try:
        while crew.assign(numbered, ahead * processes - len(results)):
            results |= crew.collect()
            while following in results:
                yield results.pop(following)
                following += 1
    finally:
        crew.stop()


class _WorkerPool:
    """The workers, and which item each of them has."""

    def __init__(self, function: Callable[[Any], Any], processes: int, timeout: float):
        self._function, self._processes, self._timeout = function, processes, timeout
        self._idle: list[_Worker] = []
        self._busy: dict[connection.Connection, tuple[_Worker, int, Any]] = {}
        self._again: list[tuple[int, Any]] = []
        self._retried: set[int] = set()

    def assign(self, items: Iterator[tuple[int, Any]], limit: int) -> bool:
        """Gives items to workers while fewer than `limit` are at work; whether any is."""
        while len(self._busy) < self._processes:
            if self._again:
                number, item = self._again.pop()
            elif len(self._busy) >= limit or (following := next(items, None)) is None:
                break
            else:
                number, item = following
            worker = self._idle.pop() if self._idle else _Worker(self._function, self._timeout)
            worker.send(item)
            self._busy[worker.pipe] = worker, number, item
        return bool(self._busy)

    def collect(self) -> dict[int, Any]:
        """Waits for at least one worker; {number of the item: its result}, without items that get a second chance."""
        results = {}
        for pipe in connection.wait(list(self._busy)):
            worker, number, item = self._busy.pop(pipe)
            result = worker.receive()
            if not isinstance(result, WorkerFailure) or result.raised:
                self._idle.append(worker)
            elif not result.timed_out and number not in self._retried:  # perhaps it was not this item's fault
                self._retried.add(number)
                self._again.append((number, item))
                continue
            results[number] = result
        return results

    def stop(self) -> None:
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            worker.stop()


class _Worker:
    def __init__(self, function: Callable[[Any], Any], timeout: float):
        # A server without threads forks the workers: forking this process, which may have loaded jax and its threads,
        # is not safe, and starting Python anew after each crash is slow.
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__, function.__module__])
        self.pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, timeout, end), daemon=True)
        self._process.start()
        end.close()  # so that the death of the process closes the pipe

    def send(self, item: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died; `take` will tell
            self.pipe.send(item)

    def receive(self) -> Any:
        """The result; `Died` when there will be none."""
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
    """What a worker does until its owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's affair
    # The default action of this signal ends the process, whatever code it runs, and with or without an owner.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            answer = function(item)
        except Exception as error:  # noqa: BLE001 -- one item's fault, whatever it is, must not end the others
            message = ' '.join(str(error).split())  # one line
            answer = WorkerFailure(False, f'{type(error).__name__}: {message}', raised=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
