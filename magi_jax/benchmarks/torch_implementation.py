"""The PyTorch implementation of a benchmark: trainer and sampler of the reference, eager or compiled.

Dimension key: B clips, T frames, N tokens of a frame, C token width.
"""

import itertools
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import Tensor

from magi_jax.benchmarks import resources
from magi_jax.benchmarks.benchmark_config import BenchmarkConfig
from magi_jax.benchmarks.problem import without_dropout
from magi_jax.benchmarks.torch_model import Magi
from magi_jax.benchmarks.torch_sampling import RandomDraws, Sampler, VideoDraws
from magi_jax.benchmarks.torch_training import Trainer, TrainingDraws, training_draws
from magi_jax.benchmarks.weights import from_state_dict
from magi_jax.config import MagiConfig

Problem = dict[str, Any]


class _Torch:
    """Code that training and sampling share."""

    def __init__(self, settings: BenchmarkConfig, compiled: bool):
        self.settings, self.config, self.compiled = settings, settings.config, compiled
        self.kind = 'gpu' if torch.cuda.is_available() else 'cpu'
        self.device = torch.device('cuda' if self.kind == 'gpu' else 'cpu')
        torch.set_num_threads(resources.threads())
        torch.set_float32_matmul_precision('high' if settings.tensor_float else 'highest')
        if compiled:
            torch._inductor.config.force_disable_caches = True  # the first call compiles
        torch.manual_seed(self.config.seed)
        self.first, self._factors = {}, None

    def facts(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self.kind == 'gpu' else 'cpu'
        framework = f'torch {torch.__version__}{" compiled" if self.compiled else ""}'
        return {'framework': framework, 'device': device, 'kind': self.kind, 'threads': torch.get_num_threads()}

    def matmul(self) -> None:
        if self._factors is None:
            size, dtype = resources.MATMUL_SIZE[self.kind], getattr(torch, self.config.train.compute_dtype)
            self._factors = torch.randn(size, size, device=self.device).to(dtype)
        self._factors @ self._factors
        self._wait()

    def device_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.kind == 'gpu' else None

    def _wait(self) -> None:
        if self.kind == 'gpu':
            torch.cuda.synchronize()

    def _model(self, config: MagiConfig, given: Problem) -> Magi:
        return Magi(config, given['shape']).load_params(given['params']).to(self.device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """Move an array to the device; integers become int64."""
        value = torch.tensor(array, device=self.device)
        return value.long() if value.dtype == torch.int32 else value


class Training(_Torch):
    """The optimizer step."""

    def outputs(self, given: Problem) -> dict[str, np.ndarray]:
        config, history = without_dropout(self.config), []
        trainer = self._trainer(config, given)
        for draws in given['draws']:
            draws = TrainingDraws(**{name: self._tensor(value) for name, value in draws.items()})
            history.append({name: float(value) for name, value in self._timed(trainer, draws).items()})
        outputs = {name: np.array([step[name] for step in history]) for name in history[0]}
        state = {name: value.cpu() for name, value in trainer.model.state_dict().items()}
        before = flatten_dict(given['params'], sep='/')
        after = flatten_dict(from_state_dict(state, given['params']), sep='/')
        return outputs | {'update': np.concatenate([np.ravel(after[name] - before[name]) for name in sorted(before)])}

    def start(self, given: Problem) -> None:
        self.trainer = self._trainer(self.config, given)
        self._timed(self.trainer, self._own_draws())

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self.trainer.step(self.tokens, self.interval, self._own_draws())
        self._wait()

    def _trainer(self, config: MagiConfig, given: Problem) -> Trainer:
        self.tokens, self.interval = self._tensor(given['tokens']), self._tensor(given['interval'])
        return Trainer(self._model(config, given), self.compiled, self.settings.torch_mode)

    def _own_draws(self) -> TrainingDraws:
        return training_draws(self.config, self.trainer.model.shape, len(self.tokens), self.device)

    def _timed(self, trainer: Trainer, draws: TrainingDraws) -> dict[str, Tensor]:
        started = resources.now()
        metrics = trainer.step(self.tokens, self.interval, draws)
        self._wait()
        if trainer.config == self.config and not self.first:
            self.first = resources.since(started)
        return metrics


class Sampling(_Torch):
    """Videos without context, frame by frame."""

    def outputs(self, given: Problem) -> dict[str, np.ndarray]:
        self.sampler = Sampler(self._model(self.config, given), self.compiled, self.settings.torch_mode)
        self.interval = self._tensor(given['interval'])
        started = resources.now()
        made = self._video(_GivenDraws(self, given['draws']), len(given['draws']))
        self.first = resources.since(started)
        return {'tokens': torch.stack(made, dim=1).cpu().numpy()}

    def start(self, given: Problem) -> None:
        self.run(1)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._video(RandomDraws(self.sampler.model, len(self.interval), self.device), self.settings.frames)

    def _video(self, draws: VideoDraws, count: int) -> list[Tensor]:
        """Return the finished tokens [B, N, C] of the first `count` frames."""
        shape = self.sampler.shape
        nothing = torch.zeros(len(self.interval), 0, shape.tokens, shape.token_width, device=self.device)
        frames = self.sampler.frames(nothing, self.settings.frames, self.interval, draws)
        made = list(itertools.islice(frames, count))
        self._wait()
        return made


class _GivenDraws:
    """`torch_sampling.VideoDraws` from arrays."""

    def __init__(self, side: _Torch, frames: list[dict[str, np.ndarray]]):
        self._side, self._frames = side, frames

    def order(self, frame: int) -> Tensor:
        return self._side._tensor(self._frames[frame]['order'])

    def noise(self, frame: int) -> Tensor:
        return self._side._tensor(self._frames[frame]['noise'])

    def context_noise(self, frame: int) -> Tensor:
        return self._side._tensor(self._frames[frame]['context_noise'])
