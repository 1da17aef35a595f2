"""The JAX side of the comparison with PyTorch, on a tiny model: what it computes, and the random numbers it does it
with, drawn here once more from the same keys so that the other side can be given them. Needs no torch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.benchmarks import random_inputs
from magi_jax.benchmarks.random_inputs import step_key
from magi_jax.config import (
    DataConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiMaskingConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.parallel.mesh import make_mesh
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import TrainState
from magi_jax.training.step import make_train_step
from tests.random_params import random_params

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}  # a third of the compile time
CLIPS, STEPS = 3, 20
BASE = MagiConfig(
    data=DataConfig(frames=4, height=4, width=6, batch_size=CLIPS, max_interval=7),
    tokenizer=TokenizerConfig(kind='identity', channels=12, downsample=2),
    model=MagiModelConfig(
        width=16, blocks=2, heads=2, mlp_width=24, patch=1, dropout=0.0,
        head=MagiHeadConfig(width=8, blocks=2, repeats=2),
    ),
    masking=MagiMaskingConfig(ratio_min=0.3, ratio_max=0.9),
    # eps: gradients that are zero but for rounding (of the keys' biases) would else be blown up to full steps, in a
    # direction that is each framework's own.
    optim=OptimConfig(
        learning_rate=1e-2, warmup_steps=3, schedule='cosine', decay_fraction=0.5, eps=1e-3, weight_decay=0.1,
        clip_norm=2.0, ema_decay=0.9, ema_warmup=True, accumulate=CLIPS,
    ),
    train=TrainConfig(steps=STEPS, compute_dtype='float32'),
    sampler=MagiSamplerConfig(mask_steps=4, denoise_steps=5, x0_clip=2.5, keep_frames=2, start=700, temperature=0.9),
)  # fmt: skip


def variant(model=None, head=None, masking=None, optim=None, train=None, sampler=None) -> MagiConfig:
    """`BASE` with other fields in its groups."""
    groups = {'masking': masking, 'optim': optim, 'train': train, 'sampler': sampler}
    changed = {name: dataclasses.replace(getattr(BASE, name), **fields) for name, fields in groups.items() if fields}
    head = dataclasses.replace(BASE.model.head, **(head or {}))
    return dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, head=head, **(model or {})), **changed)


VARIANTS = {
    'base': BASE,
    'other CTF': variant(
        model={
            'mlp_layers': 'temporal', 'frame_table': 'full', 'shared_projection': False, 'embed_at': 'every_block',
            'noise_embedding': 'concat_token', 'input_norm': False,
        },
        head={'readout': True, 'position_table': 'per_frame', 'prediction': 'clean', 'bound_weight': 0.5},
        masking={'draw_per': 'clip', 'noise_per': 'frame', 'noise_visible': True, 'first_frame_loss': False},
        train={'remat': 'block'},
        sampler={
            'context_noise': True, 'context_level': 2, 'mask_steps': 9, 'x0_clip': float('inf'), 'start': 900,
            'opening_temperature': 0.5,
        },
    ),
    'MTF': variant(
        model={'teacher_forcing': 'masked', 'frame_table': 'frame', 'noise_embedding': 'add'},
        head={'prediction': 'velocity'},
        masking={'draw_per': 'batch', 'noise_masked_teacher': False},
        sampler={'long_video': 'interpolate'},
    ),
}  # fmt: skip
SAMPLES = {'base': (0, 4), 'other CTF': (3, 6), 'MTF': (6, 7)}  # context frames, frames; the trained length is 4


@functools.cache
def tokenizer():
    made = create_tokenizer(BASE.tokenizer, jax.random.key(0), BASE.data.height, BASE.data.width)
    return made.replace(latent_mean=made.latent_mean + 0.1, latent_std=made.latent_std * 0.6)


def objective(config: MagiConfig) -> MaskedDiffusion:
    return MaskedDiffusion(config, clip_shape(config, tokenizer()))


@functools.cache
def params(config: MagiConfig) -> dict:
    return random_params(objective(config).init, scale=0.2)


def batch(step: int = 0) -> dict[str, np.ndarray]:
    """Pixels, intervals and example numbers of a step."""
    rng, data = np.random.default_rng(step), BASE.data
    return {
        'video': rng.integers(0, 256, (CLIPS, data.frames, data.height, data.width, 3), np.uint8),
        'interval': rng.integers(1, data.max_interval + 1, CLIPS, np.int32),
        'example': np.arange(CLIPS, dtype=np.int32) + CLIPS * step,
    }


def clean_tokens(step: int = 0) -> jax.Array:
    """float32 [B, T, N, C] of `batch(step)`."""
    return patchify(tokenizer().encode(to_float(batch(step)['video']), None), BASE.model.patch)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _loss_and_gradients(config, params, batch, key):
    run = jax.value_and_grad(objective(config).loss, has_aux=True)
    (_, metrics), gradients = run(params, tokenizer(), batch, key, False)
    return metrics, gradients


@functools.cache
def loss_and_gradients(config: MagiConfig) -> tuple[dict, dict]:
    """Metrics and gradients of the first step's batch."""
    return jax.device_get(_loss_and_gradients(config, params(config), batch(), step_key(config, 0)))


def training_draws(config: MagiConfig, step: int = 0) -> dict[str, np.ndarray]:
    """What `MaskedDiffusion.loss` draws for `batch(step)`, under the names of `TrainingDraws`."""
    return jax.device_get(_training_draws(config, step_key(config, step), batch(step)['example']))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _training_draws(config, key, example):
    return random_inputs.training_draws(config, clip_shape(config, tokenizer()), key, example)


def apply(config: MagiConfig, network: str, *args) -> jax.Array:
    """`trunk` or `head` of the objective, with `params(config)`, on the given arguments."""
    return _apply(config, network, params(config)[network], *args)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _apply(config, network, params, *args):
    return getattr(objective(config), network).apply({'params': params}, *args)


@functools.cache
def train(config: MagiConfig) -> tuple[dict, dict, list[dict]]:
    """Parameters and their average after `STEPS` steps from `params(config)`, and each step's metrics."""
    optimizer, weights = make_optimizer(config.optim, config.train.steps), params(config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state, history = TrainState(jnp.int32(0), weights, optimizer.init(weights), weights), []
    step = jax.jit(make_train_step(objective(config), optimizer, config, mesh))
    # Compiled ahead: jit would compile again for the second step, whose state lies on the mesh.
    step = step.lower(state, tokenizer(), batch()).compile(compiler_options=QUICK)
    for number in range(STEPS):
        state, metrics = step(state, tokenizer(), batch(number))
        history.append(jax.device_get(metrics))
    return *jax.device_get((state.params, state.ema)), history


def clip_keys() -> jax.Array:
    return jax.random.split(jax.random.key(11), CLIPS)


@functools.cache
def sample(config: MagiConfig, context: int, frames: int) -> np.ndarray:
    """New frames [B, frames - context, N, C] behind `context_tokens(context)`."""
    sampler, weights = VideoSampler(config, clip_shape(config, tokenizer())), sampling_weights(config, params(config))
    jax.config.update('jax_disable_most_optimizations', True)  # `QUICK` for methods that are jitted where they are
    try:
        state = sampler.start(
            weights, context_tokens(context), frames, Conditions(jnp.asarray(batch()['interval'])), clip_keys()
        )
        return np.stack(list(sampler.frames(weights, state, frames - context)), axis=1)
    finally:
        jax.config.update('jax_disable_most_optimizations', False)


def context_tokens(frames: int) -> jax.Array:
    """float32 [B, c, N, C], c <= 8."""
    return jnp.concatenate([clean_tokens(0), clean_tokens(1)], axis=1)[:, :frames]


def video_draws(config: MagiConfig) -> random_inputs.VideoDraws:
    """What `sample` draws."""
    return random_inputs.VideoDraws(config, clip_shape(config, tokenizer()), clip_keys())
