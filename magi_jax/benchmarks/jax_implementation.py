"""The JAX implementation of a benchmark: the programs that training and sampling run, on one device.

Dimension key: B clips, T frames, N tokens of a frame, C token width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from magi_jax.benchmarks import problem, resources
from magi_jax.benchmarks.benchmark_config import COMPARED_FRAMES, COMPARED_STEPS, BenchmarkConfig
from magi_jax.benchmarks.random_inputs import VideoDraws, step_key, training_draws
from magi_jax.config import Config, MeshConfig
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, replicated_sharding
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.training.lowering import lower_train_step
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory, TrainState

Problem = dict[str, Any]


class _Jax:
    """Code that training and sampling share."""

    def __init__(self, settings: BenchmarkConfig):
        jax.config.update('jax_enable_compilation_cache', False)  # the first call compiles
        if jax.default_backend() == 'gpu':  # elsewhere the program equals that of training and sampling
            precision = 'tensorfloat32' if settings.tensor_float else 'float32'
            jax.config.update('jax_default_matmul_precision', precision)
        self.settings, self.config = settings, settings.config
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self.tokenizer = jax.device_put(problem.latent_bytes(self.config), replicated_sharding(self.mesh))
        self.shape = clip_shape(self.config, self.tokenizer)
        self.batch = problem.make_batch(self.config)
        self.first, self._factors = {}, None

    def facts(self) -> dict[str, Any]:
        device = jax.devices()[0]
        return {
            'framework': f'jax {jax.__version__}', 'device': device.device_kind, 'kind': device.platform,
            'threads': resources.threads(),
        }  # fmt: skip

    def weights(self) -> Any:
        """Return parameters on the host, the same at every call."""
        return problem.random_params(make_objective(self.config, self.tokenizer).init, self.config.seed)

    def matmul(self) -> None:
        if self._factors is None:
            shape = 2 * (resources.MATMUL_SIZE[jax.devices()[0].platform],)
            self._factors = jax.random.normal(jax.random.key(0), shape, jnp.dtype(self.config.train.compute_dtype))
        jax.block_until_ready(_product(self._factors))

    def device_bytes(self) -> int | None:
        statistics = jax.devices()[0].memory_stats()
        return statistics and statistics['peak_bytes_in_use']


@jax.jit
def _product(x: jax.Array) -> jax.Array:
    return x @ x


class Training(_Jax):
    """The optimizer step."""

    def problem(self) -> Problem:
        """Return the shared inputs: 'shape', 'params', 'tokens' [B, T, N, C], 'interval' [B], and 'draws'."""
        draw = jax.jit(lambda step: training_draws(
            self.config, self.shape, step_key(self.config, step), self.batch['example']
        ))  # fmt: skip
        return {
            'shape': self.shape,
            'params': self.weights(),
            'tokens': problem.clean_tokens(self.config, self.batch),
            'interval': self.batch['interval'],
            'draws': [jax.device_get(draw(step)) for step in range(COMPARED_STEPS)],
        }

    def outputs(self, given: Problem) -> dict[str, np.ndarray]:
        config = problem.without_dropout(self.config)
        state, history = self._state(given['params']), []
        for _ in range(COMPARED_STEPS):
            state, metrics = self._timed(config, state)
            history.append(jax.device_get(metrics))
        outputs = {name: np.array([step[name] for step in history]) for name in history[0] if name != 'bad_leaf'}
        before, after = (flatten_dict(jax.device_get(tree), sep='/') for tree in (given['params'], state.params))
        return outputs | {'update': np.concatenate([np.ravel(after[name] - before[name]) for name in sorted(before)])}

    def start(self, given: Problem) -> None:
        self.state, _ = self._timed(self.config, self._state(given['params']))

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self.state, _ = self._step(self.config, self.state)
        jax.block_until_ready(self.state)

    def _state(self, params: Any) -> TrainState:
        optimizer = make_optimizer(self.config.optim, self.config.train.steps)
        objective = make_objective(self.config, self.tokenizer)
        shardings = StateFactory(objective, optimizer, self.mesh).shardings()
        params = jax.device_put(params, shardings.params)
        state = TrainState(jnp.int32(0), params, optimizer.init(params), jax.tree.map(jnp.copy, params))
        return jax.device_put(state, shardings)

    def _timed(self, config: Config, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        started = resources.now()
        result = jax.block_until_ready(self._step(config, state))
        if config == self.config and not self.first:
            self.first = resources.since(started)
        return result

    def _step(self, config: Config, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._program(config)(state, self.tokenizer, self._placed)

    @functools.cached_property
    def _placed(self) -> dict[str, jax.Array]:
        return put_batch(self.mesh, self.batch)

    @functools.cache  # noqa: B019, one object in each process
    def _program(self, config: Config) -> jax.stages.Compiled:
        return lower_train_step(config, self.mesh, self.tokenizer).compile()


class Sampling(_Jax):
    """Videos without context, frame by frame."""

    def __init__(self, settings: BenchmarkConfig):
        super().__init__(settings)
        self.sampler = VideoSampler(self.config, self.shape, sampling_layout(self.config, self.shape, self.mesh))
        self.videos = 0

    def problem(self) -> Problem:
        """Return the shared inputs: 'shape', 'params', 'interval' [B], and 'draws', a list over frames."""
        draws = VideoDraws(self.config, self.shape, self._keys(0))
        purposes = ('order', 'noise', 'context_noise')
        frames = range(min(COMPARED_FRAMES, self.settings.frames))
        return {
            'shape': self.shape,
            'params': self.weights(),
            'interval': self.batch['interval'],
            'draws': [{name: getattr(draws, name)(frame) for name in purposes} for frame in frames],
        }

    def outputs(self, given: Problem) -> dict[str, np.ndarray]:
        params = jax.device_put(given['params'], replicated_sharding(self.mesh))
        self.sampling_weights = sampling_weights(self.config, params)
        self.interval = jax.device_put(given['interval'], batch_sharding(self.mesh))
        started = resources.now()
        made = self._video(0, len(given['draws']))
        self.first = resources.since(started)
        return {'tokens': np.stack(made, axis=1)}

    def start(self, given: Problem) -> None:
        self.run(1)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self.videos += 1
            self._video(self.videos, self.settings.frames)

    def _video(self, number: int, frames: int) -> list[jax.Array]:
        """Return the finished tokens [B, N, C] of every frame."""
        keys = jax.device_put(self._keys(number), batch_sharding(self.mesh))
        nothing = jnp.zeros((len(self.interval), 0, self.shape.tokens, self.shape.token_width))
        nothing = jax.device_put(nothing, batch_sharding(self.mesh))
        # The window has room for all frames of a timed video, also when only the first ones are compared.
        state = self.sampler.start(
            self.sampling_weights, nothing, self.settings.frames, Conditions(self.interval), keys
        )
        return jax.block_until_ready(list(self.sampler.frames(self.sampling_weights, state, frames)))

    def _keys(self, number: int) -> jax.Array:
        return jax.random.split(jax.random.key(number), len(self.batch['interval']))
