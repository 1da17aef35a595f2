"""The programs that training and sampling run, traced from shapes alone: no array is made and no device has to exist.

Dimension key: B clips, T frames, H W pixels, N tokens of a frame, C token width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, Sharding

from magi_jax.config import Config
from magi_jax.data.latents import batch_shapes
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import SAMPLING_SPECS, sampling_layout
from magi_jax.parallel.mesh import batch_sharding, check_batch, replicated_sharding
from magi_jax.sampling.state import STATE_LAYOUT, VideoState
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import make_train_step


def abstract_tokenizer(config: Config) -> Tokenizer | None:
    """A tokenizer of shapes as `config.tokenizer` describes it; None for an autoencoder run, which has none."""
    if config.objective == 'autoencoder':
        return None
    data = config.data
    return jax.eval_shape(lambda key: create_tokenizer(config.tokenizer, key, data.height, data.width), _key())


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch on `mesh`: video uint8 [B, T, H, W, 3], interval and example int32 [B].

    Where the data are latents, their moments [B, t, h, w, c] stand in the place of video.
    """
    data, number = config.data, ((), jnp.int32)
    clip = batch_shapes(data) or {'video': ((data.frames, data.height, data.width, 3), jnp.uint8)}
    rows = clip | {'interval': number, 'example': number}
    shapes = {name: jax.ShapeDtypeStruct((data.batch_size, *shape), dtype) for name, (shape, dtype) in rows.items()}
    return place(shapes, batch_sharding(mesh))


def trace_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Traced:
    """The optimizer step as jit sees it, (state, tokenizer, batch) -> (state, metrics); the state is donated.

    Args:
      config: of the run.
      mesh: of devices that exist or not.
      tokenizer: the run's own, or `abstract_tokenizer`; only its shapes are read.

    Raises:
      ConfigError: batch, model and mesh do not fit.
    """
    check_batch(mesh, config.data.batch_size, config.optim.accumulate)
    objective, optimizer = make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps)
    state = StateFactory(objective, optimizer, mesh).abstract()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(objective, optimizer, config, mesh)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated_sharding(mesh)))
    return step.trace(state, place(tokenizer, replicated_sharding(mesh)), abstract_batch(config, mesh))


def lower_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Lowered:
    """`trace_train_step`, lowered for the mesh's devices: `.compile()` makes the very program that training runs."""
    return trace_train_step(config, mesh, tokenizer).lower()


def trace_next_frame(config: Config, mesh: Mesh, tokenizer: Tokenizer, clips: int, frames: int) -> jax.stages.Traced:
    """The sampler's step, (weights, state) -> (state, tokens [B, N, C]), for `clips` videos of `frames` frames.

    Clips are divided over the batch axes, sites over `sequence`; weights lie whole on every device.

    Raises:
      ConfigError: clips, model and mesh do not fit.
    """
    check_batch(mesh, clips, 1)
    shape, length = clip_shape(config, tokenizer), tokenizer.latent_frames(frames)
    sampler = VideoSampler(config, shape, sampling_layout(config.model, shape, mesh))
    params = nn.unbox(jax.eval_shape(make_objective(config, tokenizer).init, _key()))
    weights = jax.eval_shape(functools.partial(sampling_weights, config), params)
    context = jax.ShapeDtypeStruct((clips, 0, shape.tokens, shape.token_width), jnp.float32)
    interval = jax.ShapeDtypeStruct((clips,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))
    state = jax.eval_shape(
        lambda weights, *clip: sampler.start(weights, clip[0], length, *clip[1:]), weights, context, interval, keys
    )
    return VideoSampler.next_frame.trace(sampler, place(weights, replicated_sharding(mesh)), _place_state(state, mesh))


def lower_next_frame(config: Config, mesh: Mesh, tokenizer: Tokenizer, clips: int, frames: int) -> jax.stages.Lowered:
    """`trace_next_frame`, lowered for the mesh's devices."""
    return trace_next_frame(config, mesh, tokenizer, clips, frames).lower()


def encoder_flops(config: Config, tokenizer: Tokenizer | None) -> float:
    """FLOPs of encoding one clip, by XLA's count of the uncompiled program: tokenizers have no loops.

    0 without a tokenizer, or where the data are latents.
    """
    if tokenizer is None or batch_shapes(config.data):
        return 0.0
    data = config.data
    clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), jnp.float32)
    encode = jax.jit(lambda tokenizer, video: tokenizer.encode(video, context=data.context_frames))
    return float(encode.lower(tokenizer, clip).cost_analysis().get('flops', 0.0))


def _place_state(state: VideoState, mesh: Mesh) -> VideoState:
    def lay(leaf: jax.ShapeDtypeStruct, kind: str) -> jax.ShapeDtypeStruct:
        return place(leaf, NamedSharding(mesh, SAMPLING_SPECS[kind]))

    return jax.tree.map(lay, state, STATE_LAYOUT)


def place(tree: Any, sharding: Sharding) -> Any:
    """Arrays or their shapes -> shapes that lie on `sharding`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
