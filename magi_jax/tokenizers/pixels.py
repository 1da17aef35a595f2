"""Pixel ranges: uint8 video as stored, float32 in [-1, 1] as every tokenizer sees it."""

import jax
import jax.numpy as jnp


def to_float(video: jax.Array) -> jax.Array:
    """uint8 [..., 3] in 0..255 -> float32 in [-1, 1]; a float video is already in that range and only cast."""
    if video.dtype == jnp.uint8:
        return jnp.asarray(video, jnp.float32) / 127.5 - 1.0
    return jnp.asarray(video, jnp.float32)


def to_uint8(video: jax.Array) -> jax.Array:
    """float [..., 3], clipped to [-1, 1] -> uint8 0..255, rounded to the nearest: the inverse of `to_float`."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
