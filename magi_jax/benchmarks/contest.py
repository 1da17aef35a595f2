"""JAX and PyTorch side by side: one process each, the same problem, outputs compared, then timed in turns."""

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
# Largest relative difference of outputs, by compute dtype. An update of Adam is looser: a gradient that is zero but for
# rounding, as that of the keys' biases, still moves its parameter, in a direction that is each framework's own.
TOLERANCES = {
    'float32': {'loss': 1e-4, 'mse': 1e-4, 'vb': 1e-4, 'grad_norm': 1e-3, 'update': 0.1, 'tokens': 1e-3},
    'bfloat16': {'loss': 2e-2, 'mse': 2e-2, 'vb': 2e-2, 'grad_norm': 5e-2, 'update': 0.5, 'tokens': 5e-2},
}


def contestants(against: Sequence[str]) -> list[str]:
    """Who takes part: JAX, then those asked for, by their keys in `AGAINST`.

    Raises:
      ConfigError: one is unknown, or asked for while PyTorch is not installed.
    """
    if unknown := sorted(set(against) - AGAINST.keys()):
        raise ConfigError(f'--against {",".join(unknown)}: there are {", ".join(AGAINST)}')
    if against and importlib.util.find_spec('torch') is None:
        raise ConfigError('--against torch needs the torch extra: pip install -e .[torch] -c requirements.txt')
    return [JAX, *(name for key, name in AGAINST.items() if key in against)]


def run(settings: Settings, names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The whole benchmark.

    Args:
      settings: of all contestants.
      names: of the contestants, `JAX` first.
      say: is told what happens, line by line.

    Returns:
      {'tolerances', 'flops' of a call, 'contestants': name -> what was measured of it}, ready for JSON.

    Raises:
      ConfigError: outputs differ by more than their tolerance, a process dies, or the config is none of a generator, or
        not one that PyTorch's side can train.
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
        for name, process in processes.items():  # when all are ready, as in the rounds
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
    """Of the model itself: an optimizer step on a batch, or a batch of videos."""
    config, clips = settings.config, settings.config.data.batch_size
    if settings.task == 'train':
        return clips * sum(train_flops(config.model, shape).values())
    stretched = config.sampler.long_video == 'interpolate' and settings.frames > shape.frames
    slots = settings.frames if stretched else shape.frames
    return clips * settings.frames * sum(frame_flops(config.model, config.sampler, shape, slots).values())


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Relative differences (Euclidean norms) of outputs, for every name in `theirs`."""
    found = {}
    for name, value in theirs.items():
        expected = np.asarray(value, np.float64)
        found[name] = float(np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected))
    return found


def refuse(contestant: str, found: dict[str, float], tolerances: dict[str, float]) -> None:
    """Raises ConfigError if a difference is larger than its tolerance, or not finite."""
    wrong = {name: value for name, value in found.items() if not value <= tolerances[name]}
    told = (f'{name} by {value:.1e} (at most {tolerances[name]:.0e})' for name, value in wrong.items())
    if wrong:
        raise ConfigError(f'outputs of {contestant} differ, so nothing is timed: {", ".join(told)}')


class Process:
    """A contestant in a process of its own; what it is asked for, it does while the others wait."""

    def __init__(self, name: str, settings: Settings):
        context = multiprocessing.get_context('spawn')
        self._name, (self._connection, theirs) = name, context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The result of a method of `Worker` or of its contestant.

        Raises:
          ConfigError: the process is gone.
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
        """Ends the process: with its connection, or by force where it is busy."""
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@dataclasses.dataclass
class Worker:
    """What runs in the process, around a contestant."""

    contestant: Any
    held: int  # bytes that the process held before it had a model

    def warm_up(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Facts, first call, and about how long a call takes."""
        self.contestant.start(problem)
        self.contestant.run(1)
        call = meter.measure(lambda: self.contestant.run(1))['wall']
        return self.contestant.facts() | {'first': self.contestant.first, 'call': call}

    def product_rate(self) -> dict[str, float]:
        """FLOP/s of a large matrix product, by each clock; forgets the peak of memory: the turns have their own."""
        work = 2.0 * meter.MATMUL_SIZE[self.contestant.facts()['kind']] ** 3
        rates = {clock: work / seconds for clock, seconds in meter.fastest(self.contestant.matmul).items()}
        meter.forget_peak()
        return rates

    def turn(self, calls: int) -> dict[str, float]:
        """Seconds of a call, over so many behind one that is not counted.

        Memory that is free while others have their turns may go back to the host of a virtual machine, which then takes
        as long as a training step to give it again.
        """
        self.contestant.run(1)
        seconds = meter.measure(lambda: self.contestant.run(calls))
        return {clock: total / calls for clock, total in seconds.items()}

    def memory(self) -> dict[str, int | None]:
        """Bytes: the resident peak of the turns, less what was held before; the device's peak."""
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
        except Exception as error:  # noqa: BLE001, raised again where it was asked for
            known = isinstance(error, (ConfigError, OSError))
            result = error if known else RuntimeError(f'in the {name} process:\n{traceback.format_exc()}')
        connection.send(result)


def _make_worker(name: str, settings: Settings) -> Worker:
    """Imports one framework: the other stays without devices and threads in this process."""
    module = 'jax_side' if name == JAX else 'torch_side'
    side = importlib.import_module(f'magi_jax.benchmarks.{module}')
    held = meter.peak_resident_bytes()
    kind = {'train': side.Training, 'sample': side.Sampling}[settings.task]
    return Worker(kind(settings) if name == JAX else kind(settings, name == COMPILED), held)
