"""Attention of a new frame to the frames before it, for inspection.

Dimension key: B clips, T frames, N tokens of a frame, C token width, L blocks, H heads, D width, F cache slots.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from magi_jax.config import ConfigError
from magi_jax.models.conditions import Conditions
from magi_jax.models.magi import Magi
from magi_jax.sampling.state import VideoState
from magi_jax.sampling.stream import clip_keys
from magi_jax.sampling.video import VideoSampler, Weights
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float

LAYER, PROJECTION = 'temporal_attention', 'qkv'  # names of the modules in layers/blocks.py


def attention_to_past(
    sampler: VideoSampler, weights: Weights, tokenizer: Tokenizer, video: np.ndarray, interval: int
) -> np.ndarray:
    """Return the temporal attention weights when the frame after `video` is predicted with all its tokens hidden.

    Args:
      sampler: sampler of the trained model, on one device.
      weights: result of `sampling_weights`.
      tokenizer: tokenizer of the model, frame-wise.
      video: uint8 [B, T, H, W, 3], 1 <= T < trained frames.
      interval: frame interval, in raw frames.

    Returns:
      float32 [L, B, H, N, T + 1], which sums to 1 over frames; the last frame is the new one.

    Raises:
      ConfigError: T is not allowed, the tokenizer is temporal, or the model has no temporal attention.
    """
    frames, trained = video.shape[1], sampler.shape.frames
    if not isinstance(sampler.trunk, Magi):
        raise ConfigError(
            f'{sampler.config.system} has no temporal attention layers: attention maps are available for magi'
        )
    if not tokenizer.frame_wise or not 1 <= frames < trained:
        raise ConfigError(
            f'attention of {frames} frames with tokenizer {tokenizer.config.kind} is not available: give 1 to'
            f' {trained - 1} frames to a model with a frame-wise tokenizer'
        )
    tokens = patchify(tokenizer.encode(to_float(jnp.asarray(video))), sampler.config.model.patch)
    conditions = Conditions(jnp.full(len(video), interval, jnp.int32))
    state = sampler.start(weights, tokens, frames + 1, conditions, clip_keys(0, range(len(video))))
    query, own_key = _projections(sampler, weights, state)
    keys = jnp.concatenate([state.cache.k[:, :, :frames], own_key], axis=2)
    heads = sampler.config.model.heads
    query, keys = (rearrange(x, 'L B F N (H d) -> L B H N F d', H=heads) for x in (query, keys))
    scores = jnp.einsum('LBHNqd,LBHNkd->LBHNk', query, keys, preferred_element_type=jnp.float32)
    attention = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)
    return np.asarray(attention[..., : sampler.shape.tokens, :])


@functools.partial(jax.jit, static_argnums=0)
def _projections(sampler: VideoSampler, weights: Weights, state: VideoState) -> tuple[jax.Array, jax.Array]:
    """Return queries and own keys [L, B, 1, N', D] of the next frame."""
    clips, tokens = len(state.clip_keys), sampler.shape.tokens
    hidden = jnp.zeros((clips, tokens, sampler.shape.token_width)), jnp.ones((clips, tokens), bool)
    _, captured = sampler.trunk.apply(
        weights['trunk'],
        *hidden,
        state.conditions,
        state.positions[state.cache.length],
        state.cache,
        method=Magi.predict,
        capture_intermediates=lambda module, _: (module.path or ('',))[-2:] == (LAYER, PROJECTION),
        mutable=['intermediates'],
    )
    blocks = captured['intermediates']['trunk']['blocks']
    query, key, _ = blocks[LAYER][PROJECTION]['__call__'][0]
    return query, key
