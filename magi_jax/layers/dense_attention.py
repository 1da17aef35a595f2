"""Attention of many queries to many keys, in chunks of queries: the scores of all queries are never in memory at once.

The backward pass keeps the logarithm of the softmax denominator and computes the scores again (Dao et al. 2022, arXiv
2205.14135).

Dimension key: B clips, Q queries, K keys, H heads, d head width; q: queries of a chunk.
"""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

Array = jax.Array

SCORE_BYTES = 2**27  # of the float32 scores of one chunk; the backward pass holds a few arrays of this size
LOWEST = float(jnp.finfo(jnp.float32).min)


def forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Compute softmax(q k / sqrt(d)) v, with the softmax in float32.

    Args:
      q: queries [B, Q, H, d].
      k: keys [B, K, H, d].
      v: values, same shape as the keys.
      mask: bool [B, K] of allowed keys, at least one for each clip; None allows all.

    Returns:
      Output [B, Q, H, d], and the logarithms of the softmax denominators, float32 [B, Q, H].
    """

    def step(carry: None, chunk: tuple[Array]) -> tuple[None, tuple[Array, Array]]:
        scores = _scores(*chunk, k, mask)
        denominator = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - denominator[..., None]).astype(v.dtype)
        out = jnp.einsum('bhqk,bkhd->bqhd', weights, v, preferred_element_type=jnp.float32)
        return carry, (out.astype(q.dtype), einops.rearrange(denominator, 'b h q -> b q h'))

    return scan_queries(step, None, (q,), _scores_per_query(k))[1]


def backward(
    q: Array, k: Array, v: Array, mask: Array | None, out: Array, denominator: Array, gradient: Array
) -> tuple[Array, Array, Array]:
    """Compute the gradients of q, k and v from the results of `forward` and the gradient of its output [B, Q, H, d].

    Returns:
      Gradients of q in its dtype and of k and v in float32.
    """

    def step(carry: tuple[Array, Array], chunk: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array]]:
        (dk, dv), (q, out, denominator, gradient) = carry, chunk
        # The softmax gradient subtracts the weighted mean over keys, which equals sum_d(output * its gradient).
        mean = jnp.einsum('bqhd,bqhd->bhq', gradient, out, preferred_element_type=jnp.float32)
        weights = jnp.exp(_scores(q, k, mask) - einops.rearrange(denominator, 'b q h -> b h q 1'))
        change = jnp.einsum('bqhd,bkhd->bhqk', gradient, v, preferred_element_type=jnp.float32)
        of_scores = (weights * (change - mean[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
        dq = jnp.einsum('bhqk,bkhd->bqhd', of_scores, k, preferred_element_type=jnp.float32)
        dk += jnp.einsum('bhqk,bqhd->bkhd', of_scores, q, preferred_element_type=jnp.float32)
        weights = weights.astype(v.dtype)
        dv += jnp.einsum('bhqk,bqhd->bkhd', weights, gradient, preferred_element_type=jnp.float32)
        return (dk, dv), (dq.astype(q.dtype),)

    zeros = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    (dk, dv), (dq,) = scan_queries(step, zeros, (q, out, denominator, gradient), _scores_per_query(k))
    return dq, dk, dv


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return scores if mask is None else jnp.where(mask[:, None, None], scores, LOWEST)


def _scores_per_query(k: Array) -> int:
    clips, keys, heads, _ = k.shape
    return clips * keys * heads


def scan_queries(step: Callable, carry: Any, arrays: tuple[Array, ...], scores: int) -> tuple[Any, tuple[Array, ...]]:
    """Scan `step(carry, arrays) -> (carry, arrays)` over chunks of queries whose scores take at most `SCORE_BYTES`.

    The last chunk is padded with zeros.

    Args:
      step: function of the carry and of a chunk of each array.
      carry: its first value.
      arrays: [B, Q, ...] each.
      scores: number of scores of one query position, over all clips and heads.

    Returns:
      The last carry, and the results for all queries [B, Q, ...].
    """
    queries = arrays[0].shape[1]
    count = min(queries, -(-4 * queries * scores // SCORE_BYTES))
    if count <= 1:
        return step(carry, arrays)
    padding = -queries % count

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return einops.rearrange(x, 'b (c q) ... -> c b q ...', c=count)

    carry, results = jax.lax.scan(step, carry, tuple(map(split, arrays)))
    return carry, tuple(einops.rearrange(x, 'c b q ... -> b (c q) ...')[:, :queries] for x in results)
