"""Joint attention of the tokens of new frames to all tokens of cached frames and of the new frames.

Dimension key: B clips, R new frames, F cache slots, N tokens of a frame, n queries of a frame, H heads, D width of all
heads together, d head width; Q queries, K keys of one step.
"""

import einops
import jax
import jax.numpy as jnp

from magi_jax.layers import cached_frame_attention_tpu
from magi_jax.layers.dense_attention import LOWEST, scan_queries
from magi_jax.layers.frame_attention import Implementation
from magi_jax.layers.kv_cache import KVCache

Array = jax.Array
Sums = tuple[Array, Array, Array]  # running maximum and sum [B, R, H, n], weighted values [B, R, H, n, d], float32

KEYS_AT_ONCE = 1536  # tokens of cached frames in one step, if a frame has no more


def cached_frame_attention(
    q: Array,
    k: Array,
    v: Array,
    cache: KVCache,
    block: Array,
    mask: Array,
    heads: int,
    implementation: Implementation,
) -> Array:
    """Attend over cached and new frames without concatenating their keys and values in memory.

    Keys are read a few frames at a time, with a running maximum and sum of the softmax. So the scores of the whole
    cache are never in memory at once, and only filled slots are read.

    Args:
      q: queries [B, R, n, D] of the new frames.
      k: keys [B, R, N, D] of the new frames.
      v: values of the new frames, same shape as the keys.
      cache: keys and values of earlier frames.
      block: int32 index of the transformer block whose cache entries are read.
      mask: bool [R, F + R] of visible (query frame, key frame) pairs. Each new frame sees itself.
      heads: number of heads H; it divides D.
      implementation: as in `layers/frame_attention.py`. 'xla' and 'cudnn' are the same here.

    Returns:
      [B, R, n, D].
    """
    if implementation in ('mosaic', 'interpret'):
        interpret = implementation == 'interpret'
        return cached_frame_attention_tpu.cached_frame_attention(q, k, v, cache, block, mask, heads, interpret)
    rows, sites, dtype = q.shape[1], k.shape[2], q.dtype
    slots = _slots_at_once(cache.capacity, sites)
    k, v = k.astype(dtype), v.astype(dtype)

    def step(carry: None, chunk: tuple[Array]) -> tuple[None, tuple[Array]]:
        queries = einops.rearrange(chunk[0], 'b q r h d -> b r h q d')

        def cached(first: Array, count: int, sums: Sums) -> Sums:
            keys, values = (read(block, first, count).astype(dtype) for read in (cache.keys, cache.values))
            return _add_keys(sums, queries, keys, values, jax.lax.dynamic_slice_in_dim(mask, first, count, axis=1))

        def new(first: int, sums: Sums) -> Sums:
            seen = mask[:, cache.capacity + first, None]
            return _add_keys(sums, queries, k[:, first : first + 1], v[:, first : first + 1], seen)

        lowest = jnp.full_like(queries[..., 0], LOWEST, jnp.float32)
        sums = lowest, jnp.zeros_like(lowest), jnp.zeros_like(queries, jnp.float32)
        for row in range(rows):
            sums = new(row, sums)
        _, total, out = cache.fold_filled(cached, sums, slots)
        return carry, (einops.rearrange(out / total[..., None], 'b r h q d -> b q r h d').astype(dtype),)

    q = einops.rearrange(q * (q.shape[-1] // heads) ** -0.5, 'b r n (h d) -> b n r h d', h=heads)
    _, (out,) = scan_queries(step, None, (q,), q.shape[0] * rows * heads * slots * sites)
    return einops.rearrange(out, 'b n r h d -> b r n (h d)')


def _add_keys(sums: Sums, q: Array, k: Array, v: Array, mask: Array) -> Sums:
    """Add keys and values [B, s, N, D] of some frames to the sums of the queries [B, R, H, n, d]; mask bool [R, s]."""
    highest, total, out = sums
    k, v = (einops.rearrange(x, 'b s n (h d) -> b h (s n) d', h=q.shape[2]) for x in (k, v))
    scores = jnp.einsum('brhqd,bhkd->brhqk', q, k, preferred_element_type=jnp.float32)
    allowed = einops.repeat(mask, 'r s -> 1 r 1 1 (s n)', n=k.shape[2] // mask.shape[1])
    scores = jnp.where(allowed, scores, LOWEST)
    higher = jnp.maximum(highest, jnp.max(scores, axis=-1))
    # A frame that is not visible adds exactly nothing, also where no visible one came before it.
    weights, shrink = jnp.where(allowed, jnp.exp(scores - higher[..., None]), 0), jnp.exp(highest - higher)
    summed = jnp.einsum('brhqk,bhkd->brhqd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return higher, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + summed


def _slots_at_once(capacity: int, sites: int) -> int:
    """Return how many slots one step reads: a divisor of the capacity with at most `KEYS_AT_ONCE` tokens, or 1."""
    fitting = min(capacity, max(1, KEYS_AT_ONCE // sites))
    return max(slots for slots in range(1, fitting + 1) if capacity % slots == 0)
