"""The programs of training and sampling, traced from shapes alone, without arrays or existing devices.

Dimension key: B clips, T frames, H W pixels, N tokens of a frame, C token width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, Sharding

from magi_jax.config import Config
from magi_jax.data import texts
from magi_jax.data.latents import batch_shapes
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import SamplingLayout, sampling_layout
from magi_jax.parallel.mesh import batch_sharding, check_batch, replicated_sharding
from magi_jax.sampling.state import STATE_LAYOUT, VideoState
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import make_train_step


def abstract_tokenizer(config: Config) -> Tokenizer | None:
    """Return the shapes of the tokenizer in `config.tokenizer`; None for an autoencoder run, which has none."""
    if config.objective == 'autoencoder':
        return None
    data = config.data
    return jax.eval_shape(lambda key: create_tokenizer(config.tokenizer, key, data.height, data.width), _key())


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a global batch on `mesh`: video uint8 [B, T, H, W, 3], interval and example int32 [B].

    If the data are latents, their moments [B, t, h, w, c] replace the video.
    """
    data, number = config.data, ((), jnp.int32)
    clip = batch_shapes(data) or {'video': ((data.frames, data.height, data.width, 3), jnp.uint8)}
    rows = clip | {'interval': number, 'example': number} | texts.batch_shapes(config.text)
    shapes = {name: jax.ShapeDtypeStruct((data.batch_size, *shape), dtype) for name, (shape, dtype) in rows.items()}
    return place(shapes, batch_sharding(mesh))


def trace_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Traced:
    """Trace the jitted optimizer step (state, tokenizer, batch) -> (state, metrics). The state is donated.

    Args:
      config: config of the run.
      mesh: mesh of devices, which need not exist.
      tokenizer: tokenizer of the run or `abstract_tokenizer`; only its shapes are read.

    Raises:
      ConfigError: the mesh cannot divide batch or model.
    """
    check_batch(mesh, config.data.batch_size, config.optim.accumulate)
    objective, optimizer = make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps)
    state = StateFactory(objective, optimizer, mesh).abstract()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(objective, optimizer, config, mesh)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated_sharding(mesh)))
    return step.trace(state, place(tokenizer, replicated_sharding(mesh)), abstract_batch(config, mesh))


def lower_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Lowered:
    """Lower `trace_train_step` for the devices of the mesh; `.compile()` gives the program that training runs."""
    return trace_train_step(config, mesh, tokenizer).lower()


def trace_next_frame(config: Config, mesh: Mesh, tokenizer: Tokenizer, clips: int, frames: int) -> jax.stages.Traced:
    """Trace the step of the sampler, (weights, state) -> (state, tokens [B, N, C]).

    Clips are sharded over the batch axes, sites over `sequence`; weights are replicated.

    Args:
      config: config of the run.
      mesh: mesh of devices, which need not exist.
      tokenizer: tokenizer of the run or `abstract_tokenizer`.
      clips: number of videos B.
      frames: length of a video.

    Raises:
      ConfigError: the mesh cannot divide clips or model.
    """
    check_batch(mesh, clips, 1)
    shape, length = clip_shape(config, tokenizer), tokenizer.latent_frames(frames)
    layout = sampling_layout(config, shape, mesh)
    sampler = VideoSampler(config, shape, layout)
    params = nn.unbox(jax.eval_shape(make_objective(config, tokenizer).init, _key()))
    weights = jax.eval_shape(functools.partial(sampling_weights, config), params)
    context = jax.ShapeDtypeStruct((clips, 0, shape.tokens, shape.token_width), jnp.float32)
    conditions = abstract_conditions(config, clips)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))
    state = jax.eval_shape(
        lambda weights, *clip: sampler.start(weights, clip[0], length, *clip[1:]), weights, context, conditions, keys
    )
    return VideoSampler.next_frame.trace(
        sampler, place(weights, replicated_sharding(mesh)), _place_state(state, layout)
    )


def lower_next_frame(config: Config, mesh: Mesh, tokenizer: Tokenizer, clips: int, frames: int) -> jax.stages.Lowered:
    """Lower `trace_next_frame` for the devices of the mesh."""
    return trace_next_frame(config, mesh, tokenizer, clips, frames).lower()


def encoder_flops(config: Config, tokenizer: Tokenizer | None) -> float:
    """Count the FLOPs of encoding one clip; 0 without a tokenizer or if the data are latents.

    The number is XLA's count for the uncompiled program, which is exact because tokenizers have no loops.
    """
    if tokenizer is None or batch_shapes(config.data):
        return 0.0
    data = config.data
    clip = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), jnp.float32)
    encode = jax.jit(lambda tokenizer, video: tokenizer.encode(video, context=data.context_frames))
    return float(encode.lower(tokenizer, clip).cost_analysis().get('flops', 0.0))


def abstract_conditions(config: Config, clips: int) -> Conditions:
    """Return the shapes of the conditions of `clips` videos."""
    text = None
    if config.text.encoder:
        states = jax.ShapeDtypeStruct((clips, config.text.length, config.text.width), jnp.float32)
        text = TextStates(states, jax.ShapeDtypeStruct(states.shape[:2], bool), jax.ShapeDtypeStruct((clips,), bool))
    return Conditions(jax.ShapeDtypeStruct((clips,), jnp.int32), text=text)


def _place_state(state: VideoState, layout: SamplingLayout) -> VideoState:
    def place_part(kind: str, part: Any) -> Any:
        return place(part, NamedSharding(layout.mesh, layout.specs[kind]))

    return jax.tree.map(place_part, STATE_LAYOUT, state)


def place(tree: Any, sharding: Sharding) -> Any:
    """Return the shapes of arrays, or of shapes, with `sharding` attached."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
