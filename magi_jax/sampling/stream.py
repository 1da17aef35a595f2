"""From pixels to pixels: whole videos, or frame by frame in memory that does not grow with their length.

Dimension key: B clips, N tokens of a frame, C token width, H W pixels.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from magi_jax.config import ConfigError
from magi_jax.sampling.state import VideoState
from magi_jax.sampling.video import VideoSampler, Weights
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify, unpatchify
from magi_jax.tokenizers.pixels import to_float, to_uint8

Array = jax.Array


def clip_keys(seed: int, numbers: Sequence[int]) -> Array:
    """[B] keys: clip `numbers[i]` of a seed is the same in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers))


def sample_clips(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    interval: Array,
    keys: Array,
    progress: Callable[[Iterator[Array], int], Iterator[Array]] = lambda made, total: made,
    sharding: jax.sharding.Sharding | None = None,
) -> Array:
    """Whole videos at once.

    The context is encoded alone. Of a temporal tokenizer, the whole video is made and decoded: as many latent frames as
    cover `frames`, of which the last may stand for more; those are cut off.

    Args:
      sampler: of the trained model.
      weights: of `sampling_weights`.
      tokenizer: the model's own.
      context: uint8 [B, c, H, W, 3], c >= 0 as `tokenizer.latent_shape` allows: kept, as the first frames.
      frames: length of the videos, context included; any.
      interval: int32 [B], raw frames between two frames.
      keys: [B], of `clip_keys`.
      progress: wraps the iterator over new frames, told their number.
      sharding: where the clips lie; weights and tokenizer must lie on the same devices. None: the default device.

    Returns:
      uint8 [B, frames, H, W, 3].

    Raises:
      ConfigError: the tokenizer cannot take so many context frames, or as `VideoSampler.start`.
    """
    context, tokens, state, new = _begin(sampler, weights, tokenizer, context, frames, interval, keys, sharding)
    made = list(progress(sampler.frames(weights, state, new), new))
    if not made:
        return context
    made, given, patch = jnp.stack(made, axis=1), context.shape[1], sampler.config.model.patch
    if tokenizer.frame_wise:
        video = _decode(tokenizer, made, patch, sampler.shape.rows * patch)
    else:
        video = _decode(tokenizer, jnp.concatenate([tokens, made], axis=1), patch, sampler.shape.rows * patch)
        video = video[:, given:frames]
    return jnp.concatenate([context, video], axis=1)


def stream_clips(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    interval: Array,
    keys: Array,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Array]:
    """The frames behind the context, uint8 [B, H, W, 3] each, as they are dispatched.

    Arguments are those of `sample_clips`. Nothing of a frame is kept but what the window holds, so under
    `sampler.long_video = 'slide'` memory does not grow.

    Raises:
      ConfigError: the tokenizer is temporal: what a latent frame decodes to depends on those before it.
    """
    if not tokenizer.frame_wise:
        raise ConfigError(
            f'{tokenizer.config.kind} decodes whole videos, not frame by frame: sample without streaming, or train with'
            ' a frame-wise tokenizer'
        )
    _, _, state, new = _begin(sampler, weights, tokenizer, context, frames, interval, keys, sharding)
    patch = sampler.config.model.patch
    made = sampler.frames(weights, state, new)  # lazily; what is wrong with the arguments is said before
    return (_decode_frame(tokenizer, tokens, patch, sampler.shape.rows * patch) for tokens in made)


def _begin(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    interval: Array,
    keys: Array,
    sharding: jax.sharding.Sharding | None,
) -> tuple[Array, Array, VideoState, int]:
    """The context where the clips lie and its tokens, the state behind it, and how many latent frames are to come."""
    if context.shape[1] > frames:
        raise ConfigError(
            f'{context.shape[1]} context frames are more than the {frames} frames asked for: raise frames'
        )
    # Not device_put, which knows only the devices of this host.
    place = jax.jit(lambda *arrays: arrays, out_shardings=sharding)
    context, interval, keys = place(jnp.asarray(context), jnp.asarray(interval, jnp.int32), keys)
    tokens, length = _encode(tokenizer, context, sampler.config.model.patch), tokenizer.latent_frames(frames)
    state = sampler.start(weights, tokens, length, interval, keys)
    return context, tokens, state, length - tokens.shape[1]


@functools.partial(jax.jit, static_argnums=2)
def _encode(tokenizer: Tokenizer, video: Array, patch: int) -> Array:
    if not video.shape[1]:
        _, rows, columns, channels = tokenizer.latent_shape(1, *video.shape[2:4])
        return patchify(jnp.zeros((video.shape[0], 0, rows, columns, channels)), patch)
    return patchify(tokenizer.encode(to_float(video)), patch)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _decode(tokenizer: Tokenizer, tokens: Array, patch: int, height: int) -> Array:
    return to_uint8(tokenizer.decode(unpatchify(tokens, patch, height)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _decode_frame(tokenizer: Tokenizer, tokens: Array, patch: int, height: int) -> Array:
    return _decode(tokenizer, tokens[:, None], patch, height)[:, 0]
