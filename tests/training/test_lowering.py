"""What is compiled ahead of time is what runs: programs traced from shapes equal those traced from arrays."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import (
    ConfigError,
    DataConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    MeshConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, replicated_sharding
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.training.lowering import (
    abstract_tokenizer,
    encoder_flops,
    trace_next_frame,
    trace_train_step,
)
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import make_train_step

BATCH = 8
CONFIG = MagiConfig(
    data=DataConfig(frames=3, height=16, width=32, batch_size=BATCH, max_interval=5),
    tokenizer=TokenizerConfig(width=4),
    model=MagiModelConfig(
        width=16, blocks=2, heads=2, mlp_width=24, head=MagiHeadConfig(width=16, blocks=1, repeats=1)
    ),
    sampler=MagiSamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2),
    train=TrainConfig(steps=4, compute_dtype='float32'),
    mesh=MeshConfig(data=4, fsdp=2),
)


def digest(traced):
    """Of the program's operations, how they are connected, and its arguments. Its text depends on what was traced
    before: equal functions are printed once or twice."""
    arguments = [(str(info.shape), str(info.dtype), info.donated) for info in jax.tree.leaves(traced.args_info)]
    return hashlib.sha256(repr([*operations(traced.jaxpr.jaxpr), arguments]).encode()).hexdigest()


def operations(jaxpr):
    numbers = {}
    for equation in jaxpr.eqns:
        inputs = [str(var) if hasattr(var, 'val') else numbers.setdefault(var, len(numbers))
                  for var in equation.invars]  # fmt: skip
        outputs = [(numbers.setdefault(var, len(numbers)), str(var.aval)) for var in equation.outvars]
        inner, settings = [], {}
        for name, value in equation.params.items():
            parts = value if isinstance(value, (tuple, list)) else [value]
            jaxprs = [getattr(part, 'jaxpr', part) for part in parts if hasattr(getattr(part, 'jaxpr', part), 'eqns')]
            inner += [list(operations(part)) for part in jaxprs]
            if not jaxprs and ' at 0x' not in str(value):
                settings[name] = str(value)
        yield equation.primitive.name, inputs, outputs, settings, inner


@pytest.fixture(scope='module')
def mesh():
    return make_mesh(CONFIG.mesh)


@pytest.fixture(scope='module')
def tokenizer():
    shapes = jax.eval_shape(lambda: create_tokenizer(CONFIG.tokenizer, jax.random.key(0), 16, 32))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture(scope='module')
def state(mesh, tokenizer):
    """Zeros where `StateFactory.init` has values: nothing here is compiled for it."""
    optimizer = make_optimizer(CONFIG.optim, CONFIG.train.steps)
    shapes = StateFactory(make_objective(CONFIG, tokenizer), optimizer, mesh).abstract()
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes)


def test_the_train_step_is_the_one_that_runs(mesh, tokenizer, state):
    objective, optimizer = make_objective(CONFIG, tokenizer), make_optimizer(CONFIG.optim, CONFIG.train.steps)
    data = CONFIG.data
    batch = {
        'video': np.zeros((BATCH, data.frames, data.height, data.width, 3), np.uint8),
        'interval': np.ones(BATCH, np.int32),
        'example': np.arange(BATCH, dtype=np.int32),
    }
    live = jax.jit(
        make_train_step(objective, optimizer, CONFIG, mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated_sharding(mesh)),
    )
    live = live.trace(state, jax.device_put(tokenizer, replicated_sharding(mesh)), put_batch(mesh, batch))
    ahead = trace_train_step(CONFIG, mesh, abstract_tokenizer(CONFIG))
    assert digest(ahead) == digest(live)
    other = dataclasses.replace(CONFIG, seed=1)
    assert digest(trace_train_step(other, mesh, tokenizer)) != digest(live)


def test_the_next_frame_is_the_one_that_runs(mesh, tokenizer, state):
    shape = clip_shape(CONFIG, tokenizer)
    sampler = VideoSampler(CONFIG, shape, sampling_layout(CONFIG, shape, mesh))
    keys = jax.device_put(jax.random.split(jax.random.key(0), BATCH), batch_sharding(mesh))
    context = jnp.zeros((BATCH, 0, sampler.shape.tokens, sampler.shape.token_width))
    params = jax.device_put(jax.device_get(state.ema), replicated_sharding(mesh))
    weights = sampling_weights(CONFIG, params)
    video = sampler.start(weights, context, 5, Conditions(jnp.ones(BATCH, jnp.int32)), keys)
    live = VideoSampler.next_frame.trace(sampler, weights, video)
    assert digest(trace_next_frame(CONFIG, mesh, abstract_tokenizer(CONFIG), BATCH, 5)) == digest(live)


def test_clips_that_cannot_be_divided_are_refused(mesh, tokenizer):
    with pytest.raises(ConfigError, match='multiple of 8'):
        trace_next_frame(CONFIG, mesh, tokenizer, 6, 5)


def test_encoding_is_counted(tokenizer):
    """The first convolution alone: 16x16 windows of 3 values to 4, at each of 2x4 latents of 3 frames."""
    first = 2 * 16 * 16 * 3 * 4 * 8 * 3
    assert 0.5 * first < encoder_flops(CONFIG, tokenizer) < 3 * first
    assert encoder_flops(CONFIG, None) == 0.0
