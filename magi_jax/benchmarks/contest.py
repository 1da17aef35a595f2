"""Runs JAX and PyTorch side by side: one process each, the same problem, outputs compared, then timed in turns."""

import dataclasses
import importlib.util
import math
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from magi_jax.benchmarks import meter
from magi_jax.benchmarks.settings import Settings
from magi_jax.config import ConfigError
from magi_jax.models.flops import frame_flops, train_flops
from magi_jax.models.magi import ClipShape

JAX, TORCH, COMPILED = 'JAX', 'PyTorch', 'PyTorch compiled'
AGAINST = {'torch': TORCH, 'torch_compiled': COMPILED}
END_SECONDS = 5.0
# Largest relative difference of outputs, by compute dtype. Adam updates get a looser bound: a gradient that is zero up
# to rounding, such as that of key biases, still moves its parameter, and the direction depends on the framework.
TOLERANCES = {
    'float32': {'loss': 1e-4, 'mse': 1e-4, 'vb': 1e-4, 'grad_norm': 1e-3, 'update': 0.1, 'tokens': 1e-3},
    'bfloat16': {'loss': 2e-2, 'mse': 2e-2, 'vb': 2e-2, 'grad_norm': 5e-2, 'update': 0.5, 'tokens': 5e-2},
}


def contestants(against: Sequence[str]) -> list[str]:
    """Return the names of the implementations: JAX, then those requested by their keys in `AGAINST`.

    Raises:
      ConfigError: an implementation is unknown, or PyTorch is not installed.
    """
    if unknown := sorted(set(against) - AGAINST.keys()):
        raise ConfigError(f'--against {",".join(unknown)}: there are {", ".join(AGAINST)}')
    if against and importlib.util.find_spec('torch') is None:
        raise ConfigError('--against torch needs the torch extra: pip install -e .[torch] -c requirements.txt')
    return [JAX, *(name for key, name in AGAINST.items() if key in against)]


def run(settings: Settings, names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Run the whole benchmark: start the processes, compare their outputs, time them in turns.

    Args:
      settings: the benchmark.
      names: names of the implementations, `JAX` first.
      say: function that logs one line.

    Returns:
      {'tolerances', 'flops' of a call, 'contestants': name -> measurements}, ready for JSON.

    Raises:
      ConfigError: outputs differ by more than their tolerance, a process ends, the config is not that of a generator,
        or the PyTorch reference cannot train it.
    """
    if settings.task == 'train' and len(names) > 1 and settings.config.optim.name != 'adamw':
        raise ConfigError('the PyTorch side trains with AdamW alone: add --config.optim.name=adamw')
    processes = {name: Process(name, settings) for name in names}
    try:
        problem = processes[JAX].ask('problem')
        tolerances, results = TOLERANCES[settings.config.train.compute_dtype], {name: {} for name in names}
        say('comparing outputs ...')
        outputs = {name: process.ask('outputs', problem) for name, process in processes.items()}
        for name in names[1:]:
            found = results[name]['differences'] = differences(outputs[JAX], outputs[name])
            say(f'  {name}: ' + ', '.join(f'{key} {value:.1e}' for key, value in found.items()))
            refuse(name, found, tolerances)
        del outputs
        say('compiling and warming up ...')
        for name, process in processes.items():
            results[name] |= process.ask('warm_up', problem)
        for name, process in processes.items():  # once all processes are ready, as in the rounds
            results[name]['matmul_flops'] = process.ask('product_rate')
        calls = {name: max(1, math.ceil(settings.seconds / result['call'])) for name, result in results.items()}
        for number in range(settings.rounds):
            for name, process in processes.items():
                turn = process.ask('turn', calls[name])
                results[name].setdefault('turns', []).append(turn)
            ratios = (f'{name} {results[name]["turns"][-1]["wall"]:.4g} s' for name in names)
            say(f'round {number + 1} of {settings.rounds}: {", ".join(ratios)} a call')
        for name, process in processes.items():
            results[name] |= process.ask('memory') | {'calls': calls[name]}
    finally:
        for process in processes.values():
            process.end()
    return {'tolerances': tolerances, 'flops': flops_of_call(settings, problem['shape']), 'contestants': results}


def flops_of_call(settings: Settings, shape: ClipShape) -> float:
    """Return the FLOPs of the model in one call: an optimizer step on a batch, or a batch of videos."""
    config, clips = settings.config, settings.config.data.batch_size
    if settings.task == 'train':
        return clips * sum(train_flops(config.model, shape).values())
    stretched = config.sampler.long_video == 'interpolate' and settings.frames > shape.frames
    slots = settings.frames if stretched else shape.frames
    return clips * settings.frames * sum(frame_flops(config.model, config.sampler, shape, slots).values())


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Return relative differences (Euclidean norms) of outputs, for every name in `theirs`."""
    found = {}
    for name, value in theirs.items():
        expected = np.asarray(value, np.float64)
        found[name] = float(np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected))
    return found


def refuse(contestant: str, found: dict[str, float], tolerances: dict[str, float]) -> None:
    """Raise ConfigError if a difference is larger than its tolerance, or not finite."""
    wrong = {name: value for name, value in found.items() if not value <= tolerances[name]}
    told = (f'{name} by {value:.1e} (at most {tolerances[name]:.0e})' for name, value in wrong.items())
    if wrong:
        raise ConfigError(f'outputs of {contestant} differ, so nothing is timed: {", ".join(told)}')


class Process:
    """An implementation in its own process. It works while the other processes wait."""

    def __init__(self, name: str, settings: Settings):
        context = multiprocessing.get_context('spawn')
        self._name, (self._connection, theirs) = name, context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Worker` or of its implementation, and return the result.

        Raises:
          ConfigError: the process has ended.
        """
        try:
            self._connection.send((method, arguments))
            result = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            status = self._process.exitcode
            raise ConfigError(f'the {self._name} process ended with status {status}: out of memory?') from error
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """End the process by closing its connection, or by force if it is busy."""
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@dataclasses.dataclass
class Worker:
    """The object that runs in the process and holds the implementation."""

    contestant: Any
    held: int  # resident bytes before the model was made

    def warm_up(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Run the first calls; return device facts, seconds of the first call, and about how long a call takes."""
        self.contestant.start(problem)
        self.contestant.run(1)
        call = meter.measure(lambda: self.contestant.run(1))['wall']
        return self.contestant.facts() | {'first': self.contestant.first, 'call': call}

    def product_rate(self) -> dict[str, float]:
        """Measure FLOP/s of a large matrix product by each clock.

        This resets the peak memory, so turns have their own.
        """
        work = 2.0 * meter.MATMUL_SIZE[self.contestant.facts()['kind']] ** 3
        rates = {clock: work / seconds for clock, seconds in meter.fastest(self.contestant.matmul).items()}
        meter.forget_peak()
        return rates

    def turn(self, calls: int) -> dict[str, float]:
        """Return the seconds of one call, averaged over `calls` calls after one that does not count.

        The first call does not count because a virtual machine may return free memory to its host during the turns of
        others. Getting it back takes as long as a training step.
        """
        self.contestant.run(1)
        seconds = meter.measure(lambda: self.contestant.run(calls))
        return {clock: total / calls for clock, total in seconds.items()}

    def memory(self) -> dict[str, int | None]:
        """Return bytes: peak resident memory of the turns without that of the empty process, and device peak."""
        resident = meter.peak_resident_bytes() - self.held
        return {'resident_bytes': resident, 'device_bytes': self.contestant.device_bytes()}


def _serve(connection: Connection, name: str, settings: Settings) -> None:
    worker = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or _make_worker(name, settings)
            target = worker if hasattr(worker, method) else worker.contestant
            result = getattr(target, method)(*arguments)
        except Exception as error:  # noqa: BLE001, raised again in the calling process
            known = isinstance(error, (ConfigError, OSError))
            result = error if known else RuntimeError(f'in the {name} process:\n{traceback.format_exc()}')
        connection.send(result)


def _make_worker(name: str, settings: Settings) -> Worker:
    """Make the worker; import one framework only, so the other one takes no devices and threads."""
    module = 'jax_side' if name == JAX else 'torch_side'
    side = importlib.import_module(f'magi_jax.benchmarks.{module}')
    held = meter.peak_resident_bytes()
    kind = {'train': side.Training, 'sample': side.Sampling}[settings.task]
    return Worker(kind(settings) if name == JAX else kind(settings, name == COMPILED), held)
