"""Multi-head attention inside a frame (space) or along the frames of one site (time).

Dimension key: B clips, R query rows (frames), S key rows, N sites (tokens of a frame), M key sites, H heads,
d head width.
"""

from typing import Literal

import jax
import jax.numpy as jnp

_SCORES = {'space': 'brnhd,brmhd->brhnm', 'time': 'brnhd,bsnhd->bnhrs'}
_OUTPUT = {'space': 'brhnm,brmhd->brnhd', 'time': 'bnhrs,bsnhd->brnhd'}


def attention_weights(q: jax.Array, k: jax.Array, mask: jax.Array | None, axis: Literal['space', 'time']) -> jax.Array:
    """Softmax weights, computed in float32 and returned in q's dtype.

    Args:
      q: [B, R, N, H, d].
      k: [B, R, M, H, d] for 'space', [B, S, N, H, d] for 'time'.
      mask: bool [R, S] or [B, R, S] of allowed pairs for 'time'; None allows all.
      axis: which axis is attended over.

    Returns:
      [B, R, H, N, M] or [B, N, H, R, S]; a row sums to 1 over its allowed keys.
    """
    scores = jnp.einsum(_SCORES[axis], q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        mask = jnp.reshape(mask, (-1, 1, 1, *mask.shape[-2:]))
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1).astype(q.dtype)


def weighted_values(weights: jax.Array, v: jax.Array, axis: Literal['space', 'time']) -> jax.Array:
    """Sum of `v` (shaped as k above) under `weights` -> [B, R, N, H, d]."""
    return jnp.einsum(_OUTPUT[axis], weights, v)
