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

from magi_jax.benchmarks import resources
from magi_jax.benchmarks.benchmark_config import BenchmarkConfig
from magi_jax.config import ConfigError
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.flops import frame_flops, train_flops

JAX, TORCH, COMPILED = 'JAX', 'PyTorch', 'PyTorch compiled'
IMPLEMENTATIONS = {'torch': TORCH, 'torch_compiled': COMPILED}
CLOSE_SECONDS = 5.0
# Largest relative difference of outputs, by compute dtype. Adam updates get a looser bound: a gradient that is zero up
# to rounding, such as that of key biases, still moves its parameter. The direction then depends on the framework.
TOLERANCES = {
    'float32': {'loss': 1e-4, 'mse': 1e-4, 'vb': 1e-4, 'grad_norm': 1e-3, 'update': 0.1, 'tokens': 1e-3},
    'bfloat16': {'loss': 2e-2, 'mse': 2e-2, 'vb': 2e-2, 'grad_norm': 5e-2, 'update': 0.5, 'tokens': 5e-2},
}


def implementations(against: Sequence[str]) -> list[str]:
    """Return the names of the implementations: JAX, then those requested by their keys in `AGAINST`.

    Raises:
      ConfigError: an implementation is unknown, or PyTorch is not installed.
    """
    if unknown := sorted(set(against) - IMPLEMENTATIONS.keys()):
        raise ConfigError(f'--against {",".join(unknown)}: there are {", ".join(IMPLEMENTATIONS)}')
    if against and importlib.util.find_spec('torch') is None:
        raise ConfigError('--against torch needs the torch extra: pip install -e .[torch] -c requirements.txt')
    return [JAX, *(name for key, name in IMPLEMENTATIONS.items() if key in against)]


def run(settings: BenchmarkConfig, names: list[str], log: Callable[[str], None]) -> dict[str, Any]:
    """Run the whole benchmark: start the processes, compare their outputs, time them in turns.

    Args:
      settings: the benchmark.
      names: names of the implementations, `JAX` first.
      log: function that logs one line.

    Returns:
      {'tolerances', 'flops' of a call, 'implementations': name -> measurements}, ready for JSON.

    Raises:
      ConfigError: outputs differ by more than their tolerance, a process ends, the config is not that of a generator,
        or the PyTorch reference cannot train it.
    """
    if settings.task == 'train' and len(names) > 1 and settings.config.optim.name != 'adamw':
        raise ConfigError('the PyTorch side trains with AdamW alone: add --config.optim.name=adamw')
    processes = {name: ImplementationProcess(name, settings) for name in names}
    try:
        problem = processes[JAX].call('problem')
        tolerances, results = TOLERANCES[settings.config.train.compute_dtype], {name: {} for name in names}
        log('comparing outputs ...')
        outputs = {name: process.call('outputs', problem) for name, process in processes.items()}
        for name in names[1:]:
            found = results[name]['differences'] = differences(outputs[JAX], outputs[name])
            log(f'  {name}: ' + ', '.join(f'{key} {value:.1e}' for key, value in found.items()))
            check_differences(name, found, tolerances)
        del outputs
        log('compiling and warming up ...')
        for name, process in processes.items():
            results[name] |= process.call('warm_up', problem)
        for name, process in processes.items():  # once all processes are ready, as in the rounds
            results[name]['matmul_flops'] = process.call('product_rate')
        calls = {name: max(1, math.ceil(settings.seconds / result['call'])) for name, result in results.items()}
        for number in range(settings.rounds):
            for name, process in processes.items():
                turn = process.call('turn', calls[name])
                results[name].setdefault('turns', []).append(turn)
            ratios = (f'{name} {results[name]["turns"][-1]["wall"]:.4g} s' for name in names)
            log(f'round {number + 1} of {settings.rounds}: {", ".join(ratios)} a call')
        for name, process in processes.items():
            results[name] |= process.call('memory') | {'calls': calls[name]}
    finally:
        for process in processes.values():
            process.close()
    return {'tolerances': tolerances, 'flops': flops_of_call(settings, problem['shape']), 'implementations': results}


def flops_of_call(settings: BenchmarkConfig, shape: ClipShape) -> float:
    """Return the FLOPs of the model in one call: an optimizer step on a batch, or a batch of videos."""
    config, clips = settings.config, settings.config.data.batch_size
    if settings.task == 'train':
        return clips * sum(train_flops(config, shape).values())
    stretched = config.sampler.long_video == 'interpolate' and settings.frames > shape.frames
    slots = settings.frames if stretched else shape.frames
    return clips * settings.frames * sum(frame_flops(config, shape, slots).values())


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Return relative differences (Euclidean norms) of outputs, for every name in `theirs`."""
    found = {}
    for name, value in theirs.items():
        expected = np.asarray(value, np.float64)
        found[name] = float(np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected))
    return found


def check_differences(implementation: str, found: dict[str, float], tolerances: dict[str, float]) -> None:
    """Raise ConfigError if a difference is larger than its tolerance, or not finite."""
    wrong = {name: value for name, value in found.items() if not value <= tolerances[name]}
    told = (f'{name} by {value:.1e} (at most {tolerances[name]:.0e})' for name, value in wrong.items())
    if wrong:
        raise ConfigError(f'outputs of {implementation} differ, so nothing is timed: {", ".join(told)}')


class ImplementationProcess:
    """An implementation in its own process. It works while the other processes wait."""

    def __init__(self, name: str, settings: BenchmarkConfig):
        context = multiprocessing.get_context('spawn')
        self._name, (self._connection, theirs) = name, context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
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

    def close(self) -> None:
        """End the process by closing its connection, or by force if it is busy."""
        self._connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@dataclasses.dataclass
class Worker:
    """The object that runs in the process and holds the implementation."""

    implementation: Any
    resident_before: int  # resident bytes before the model was made

    def warm_up(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Run the first calls; return device facts, seconds of the first call, and about how long a call takes."""
        self.implementation.start(problem)
        self.implementation.run(1)
        call = resources.measure(lambda: self.implementation.run(1))['wall']
        return self.implementation.facts() | {'first': self.implementation.first, 'call': call}

    def product_rate(self) -> dict[str, float]:
        """Measure FLOP/s of a large matrix product by each clock.

        This resets the peak memory, so turns have their own.
        """
        work = 2.0 * resources.MATMUL_SIZE[self.implementation.facts()['kind']] ** 3
        rates = {clock: work / seconds for clock, seconds in resources.fastest(self.implementation.matmul).items()}
        resources.forget_peak()
        return rates

    def turn(self, calls: int) -> dict[str, float]:
        """Return the seconds of one call, averaged over `calls` calls after one that does not count.

        The first call does not count because a virtual machine may return free memory to its host during the turns of
        others. Getting it back takes as long as a training step.
        """
        self.implementation.run(1)
        seconds = resources.measure(lambda: self.implementation.run(calls))
        return {clock: total / calls for clock, total in seconds.items()}

    def memory(self) -> dict[str, int | None]:
        """Return bytes: peak resident memory of the turns without that of the empty process, and device peak."""
        resident = resources.peak_resident_bytes() - self.resident_before
        return {'resident_bytes': resident, 'device_bytes': self.implementation.device_bytes()}


def _serve(connection: Connection, name: str, settings: BenchmarkConfig) -> None:
    worker = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or _make_worker(name, settings)
            target = worker if hasattr(worker, method) else worker.implementation
            result = getattr(target, method)(*arguments)
        except Exception as error:  # noqa: BLE001, raised again in the calling process
            known = isinstance(error, (ConfigError, OSError))
            result = error if known else RuntimeError(f'in the {name} process:\n{traceback.format_exc()}')
        connection.send(result)


def _make_worker(name: str, settings: BenchmarkConfig) -> Worker:
    """Make the worker; import one framework only, so the other one takes no devices and threads."""
    module = 'jax_implementation' if name == JAX else 'torch_implementation'
    side = importlib.import_module(f'magi_jax.benchmarks.{module}')
    held = resources.peak_resident_bytes()
    kind = {'train': side.Training, 'sample': side.Sampling}[settings.task]
    return Worker(kind(settings) if name == JAX else kind(settings, name == COMPILED), held)
