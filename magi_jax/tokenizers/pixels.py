"""Pixel ranges: uint8 in stored video, float32 in [-1, 1] in tokenizers."""

import jax
import jax.numpy as jnp


def to_float(video: jax.Array) -> jax.Array:
    """Convert uint8 [..., 3] in 0..255 to float32 in [-1, 1]. A float video is expected in that range and only cast."""
    if video.dtype == jnp.uint8:
        return jnp.asarray(video, jnp.float32) / 127.5 - 1.0
    return jnp.asarray(video, jnp.float32)


def to_uint8(video: jax.Array) -> jax.Array:
    """Convert float [..., 3], clipped to [-1, 1], to uint8 0..255, rounded to nearest: the inverse of `to_float`."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
