"""Attention of the tokens of all frames to the states of a text.

Dimension key: B clips, R rows (frames), n tokens of a frame on one device, S states of the text, H heads, d head width.
"""

import einops
import jax
from jax.ad_checkpoint import checkpoint_name

from magi_jax.layers import dense_attention
from magi_jax.layers.self_attention import DENOMINATOR, OUTPUT

Array = jax.Array
Kept = tuple[Array, ...]


@jax.custom_vjp
def cross_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attend from every token to the states of the text of its clip.

    Args:
      q: queries [B, R, n, H, d].
      k: keys [B, S, H, d].
      v: values, same shape.
      mask: bool [B, S]: which states are text and not padding; at least one in each clip.

    Returns:
      [B, R, n, H, d].
    """
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Kept]:
    out, denominator = dense_attention.forward(einops.rearrange(q, 'b r n h d -> b (r n) h d'), k, v, mask)
    denominator = checkpoint_name(denominator, DENOMINATOR)
    out = checkpoint_name(out.reshape(q.shape), OUTPUT)
    return out, (q, k, v, mask, out, denominator)


def _backward(kept: Kept, gradient: Array) -> tuple[Array | None, ...]:
    q, k, v, mask, out, denominator = kept
    flat_q, flat_out, gradient = (einops.rearrange(x, 'b r n h d -> b (r n) h d') for x in (q, out, gradient))
    dq, dk, dv = dense_attention.backward(flat_q, k, v, mask, flat_out, denominator, gradient)
    return dq.reshape(q.shape), dk.astype(k.dtype), dv.astype(v.dtype), None


cross_attention.defvjp(_forward, _backward)
