"""Times the training step and the sampled frame of several models in turns, so that they meet the same machine.

Dimension key: B clips, T frames, N tokens of a frame, C token width.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.benchmarks import problem, resources
from magi_jax.config import Config, MeshConfig
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import make_mesh, put_batch
from magi_jax.sampling.stream import clip_keys
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.training.lowering import lower_train_step
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory


@dataclasses.dataclass
class Model:
    """One model, ready to run: the last state of its training and of its video."""

    step: Any
    train_inputs: tuple[Any, ...]
    sampler: VideoSampler
    weights: Any
    video: Any

    def train(self) -> None:
        """Run one training step."""
        state, *inputs = self.train_inputs
        self.train_inputs = (jax.block_until_ready(self.step(state, *inputs)[0]), *inputs)

    def sample(self) -> None:
        """Sample one frame against a full cache."""
        self.video, _ = jax.block_until_ready(self.sampler.next_frame(self.weights, self.video))


def time_systems(configs: Mapping[str, Config], repeats: int) -> dict[str, dict[str, float]]:
    """Return {name: {'step': seconds, 'frame': seconds, 'parameters': number}}, medians over `repeats` turns."""
    models = {name: _prepare(config) for name, config in configs.items()}
    for model in models.values():  # the first calls are slower
        model.train()
        model.sample()
    times: dict[str, dict[str, list[float]]] = {name: {'step': [], 'frame': []} for name in models}
    for _ in range(repeats):
        for kind in ('step', 'frame'):
            for name, model in models.items():
                work = model.train if kind == 'step' else model.sample
                times[name][kind].append(resources.measure(work)['wall'])
    medians = {name: {kind: statistics.median(values) for kind, values in of.items()} for name, of in times.items()}
    sizes = {name: sum(x.size for x in jax.tree.leaves(model.train_inputs[0].params)) for name, model in models.items()}
    return {name: medians[name] | {'parameters': sizes[name]} for name in models}


def _prepare(config: Config) -> Model:
    mesh, tokenizer = make_mesh(MeshConfig(), jax.devices()[:1]), problem.latent_bytes(config)
    objective, shape, clips = make_objective(config, tokenizer), clip_shape(config, tokenizer), config.data.batch_size
    factory = StateFactory(objective, make_optimizer(config.optim, config.train.steps), mesh)
    state = factory.init(jax.random.key(config.seed))
    batch = put_batch(mesh, problem.make_batch(config))
    sampler = VideoSampler(config, shape, sampling_layout(config, shape, mesh))
    weights = sampling_weights(config, jax.tree.map(jnp.copy, state.params))
    context = jnp.zeros((clips, shape.frames - 1, shape.tokens, shape.token_width))
    conditions = Conditions(jnp.ones(clips, jnp.int32))
    video = sampler.start(weights, context, 10**6, conditions, clip_keys(0, np.arange(clips)))
    step = lower_train_step(config, mesh, tokenizer).compile()
    return Model(step, (state, tokenizer, batch), sampler, weights, video)
