"""Haar wavelets in space and time: split a video into cubes of 4x4x4 pixels; the first cube holds the first frame only.

Dimension key: B clips, T frames, H W pixels, t = 1 + (T - 1) / 4, h w = H/4 W/4, C channels; i j k which half of a pair
in time, rows and columns.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

ROUNDS = 2  # each halves every axis
SIDE = 2**ROUNDS


def patch(video: jax.Array) -> jax.Array:
    """Transform [B, T, H, W, C] with T = 1 + 4n and H, W multiples of 4 to [B, t, h, w, 64 C].

    Channels are ordered from the lowest frequencies up.
    """
    first = repeat(video[:, :1], 'B 1 H W C -> B p H W C', p=SIDE)
    x = jnp.concatenate([first, video[:, 1:]], axis=1)
    for _ in range(ROUNDS):
        x = rearrange(x, 'B (T i) (H j) (W k) C -> i j k B T H W C', i=2, j=2, k=2)
        for axis in range(3):
            a, b = jnp.split(x, 2, axis)
            x = jnp.concatenate([(a + b) / 2, (a - b) / 2], axis)
        x = rearrange(x, 'i j k B T H W C -> B T H W (i j k C)')
    return x


def unpatch(x: jax.Array) -> jax.Array:
    """Invert `patch`: [B, t, h, w, 64 C] to [B, T, H, W, C]."""
    for _ in range(ROUNDS):
        x = rearrange(x, 'B T H W (i j k C) -> i j k B T H W C', i=2, j=2, k=2)
        for axis in range(3):
            low, high = jnp.split(x, 2, axis)
            x = jnp.concatenate([low + high, low - high], axis)
        x = rearrange(x, 'i j k B T H W C -> B (T i) (H j) (W k) C')
    return x[:, SIDE - 1 :]
