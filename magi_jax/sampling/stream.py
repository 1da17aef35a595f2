"""Sampling from pixels to pixels: complete videos, or frame by frame in constant memory.

Dimension key: B clips, N tokens of a frame, C token width, H W pixels.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from magi_jax.config import ConfigError
from magi_jax.models.conditions import Conditions
from magi_jax.sampling.state import VideoState
from magi_jax.sampling.video import VideoSampler, Weights
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify, unpatchify
from magi_jax.tokenizers.pixels import to_float, to_uint8

Array = jax.Array


def clip_keys(seed: int, numbers: Sequence[int]) -> Array:
    """Return keys [B], one per clip. Clip `numbers[i]` of a seed is the same in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers))


def sample_clips(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    conditions: Conditions,
    keys: Array,
    progress: Callable[[Iterator[Array], int], Iterator[Array]] = lambda frames, total: frames,
    sharding: jax.sharding.Sharding | None = None,
) -> Array:
    """Sample complete videos.

    The context is encoded on its own. With a temporal tokenizer, the complete video is generated and then decoded. Its
    latent frames may decode to more than `frames` frames; the extra ones are cut off.

    Args:
      sampler: sampler of the trained model.
      weights: result of `sampling_weights`.
      tokenizer: tokenizer of the model.
      context: first frames of the videos, uint8 [B, c, H, W, 3]; c >= 0 as `tokenizer.latent_shape` allows.
      frames: length of the videos, context included; any length.
      conditions: frame interval in raw frames, and text, of B clips.
      keys: keys [B], result of `clip_keys`.
      progress: wrapper of the iterator over new frames; its second argument is their number.
      sharding: sharding of the clips; weights and tokenizer must be on the same devices. None: the default device.

    Returns:
      uint8 [B, frames, H, W, 3].

    Raises:
      ConfigError: the tokenizer does not accept this number of context frames, or as in `VideoSampler.start`.
    """
    context, tokens, state, new = _begin(sampler, weights, tokenizer, context, frames, conditions, keys, sharding)
    new_tokens = list(progress(sampler.frames(weights, state, new), new))
    if not new_tokens:
        return context
    new_tokens, context_frames, patch = jnp.stack(new_tokens, axis=1), context.shape[1], sampler.config.model.patch
    if tokenizer.frame_wise:
        video = _decode(tokenizer, new_tokens, patch, sampler.shape.rows * patch)
    else:
        video = _decode(tokenizer, jnp.concatenate([tokens, new_tokens], axis=1), patch, sampler.shape.rows * patch)
        video = video[:, context_frames:frames]
    return jnp.concatenate([context, video], axis=1)


def stream_clips(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    conditions: Conditions,
    keys: Array,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Array]:
    """Return an iterator over the frames after the context, uint8 [B, H, W, 3], as they are dispatched.

    Arguments are those of `sample_clips`. Only the window is kept, so memory does not grow if `sampler.long_video` is
    'slide'.

    Raises:
      ConfigError: the tokenizer is temporal, so a decoded frame depends on earlier latent frames.
    """
    if not tokenizer.frame_wise:
        raise ConfigError(
            f'{tokenizer.config.kind} decodes whole videos, not frame by frame: sample without streaming, or train with'
            ' a frame-wise tokenizer'
        )
    _, _, state, new = _begin(sampler, weights, tokenizer, context, frames, conditions, keys, sharding)
    patch = sampler.config.model.patch
    new_tokens = sampler.frames(weights, state, new)  # a lazy iterator; arguments were checked before
    return (_decode_frame(tokenizer, tokens, patch, sampler.shape.rows * patch) for tokens in new_tokens)


def _begin(
    sampler: VideoSampler,
    weights: Weights,
    tokenizer: Tokenizer,
    context: Array,
    frames: int,
    conditions: Conditions,
    keys: Array,
    sharding: jax.sharding.Sharding | None,
) -> tuple[Array, Array, VideoState, int]:
    """Prepare sampling of the frames after the context.

    Return the context on its devices, its tokens, the state after it, and the number of latent frames to generate.
    """
    if context.shape[1] > frames:
        raise ConfigError(
            f'{context.shape[1]} context frames are more than the {frames} frames requested: raise frames'
        )
    # jit and not device_put, which reaches only the devices of this host.
    place = jax.jit(lambda *arrays: arrays, out_shardings=sharding)
    context, conditions, keys = place(jnp.asarray(context), jax.tree.map(jnp.asarray, conditions), keys)
    tokens, length = _encode(tokenizer, context, sampler.config.model.patch), tokenizer.latent_frames(frames)
    state = sampler.start(weights, tokens, length, conditions, keys)
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
