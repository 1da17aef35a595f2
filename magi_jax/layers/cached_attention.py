"""Temporal attention of new frames to cached frames and to each other, separately at each site.

Dimension key: B clips, R new rows (frames), S key rows, F cache slots, N sites (tokens of a frame), H heads, D width of
all heads together.
"""

import einops
import jax
import jax.numpy as jnp

from magi_jax.layers.kv_cache import KVCache


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: KVCache,
    block: jax.Array,
    mask: jax.Array,
    heads: int,
    merged: bool,
) -> jax.Array:
    """Attend over cached and new frames without concatenating their keys and values in memory.

    Args:
      q: queries [B, R, N, D] of the new frames.
      k: keys of the new frames, same shape.
      v: values of the new frames, same shape.
      cache: keys and values of earlier frames.
      block: int32 index of the transformer block whose cache entries are read.
      mask: bool [R, F + R] of allowed (query row, key row) pairs.
      heads: number of heads H; it divides D.
      merged: keep heads merged in D. Query and key are then multiplied elementwise, and a product with a 0/1 matrix
        sums over each head. This avoids moving the whole cache between TPU lanes when the head width is 80. On other
        devices splitting is free and faster (2.7 times as many frames a second on a CPU).

    Returns:
      [B, R, N, D].
    """
    width, dtype = q.shape[-1], q.dtype
    of_head = jnp.repeat(jnp.eye(heads, dtype=dtype), width // heads, axis=0)  # [D, H]
    q = q * (width // heads) ** -0.5

    def split(x: jax.Array) -> jax.Array:
        return einops.rearrange(x.astype(dtype), '... (h d) -> ... h d', h=heads)

    def scores(keys: jax.Array) -> jax.Array:  # [B, S, N, D] -> [B, R, S, N, H]
        if not merged:
            return jnp.einsum('brnhd,bsnhd->brsnh', split(q), split(keys), preferred_element_type=jnp.float32)
        shared = q[:, :, None] * keys[:, None].astype(dtype)
        return jnp.einsum('brsnd,dh->brsnh', shared, of_head, preferred_element_type=jnp.float32)

    def summed(weights: jax.Array, values: jax.Array) -> jax.Array:  # [B, R, S, N, H], [B, S, N, D] -> [B, R, N, D]
        if not merged:
            out = jnp.einsum('brsnh,bsnhd->brnhd', weights, split(values), preferred_element_type=jnp.float32)
            return einops.rearrange(out, 'b r n h d -> b r n (h d)')
        spread = jnp.einsum('brsnh,dh->brsnd', weights, of_head, preferred_element_type=jnp.float32)
        return jnp.sum(spread * values[:, None], axis=2)

    def score_slots(first: jax.Array, slots: int, filled: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(filled, scores(cache.keys(block, first, slots)), first, axis=2)

    def sum_slots(first: jax.Array, slots: int, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(weights, first, slots, axis=2)
        return total + summed(part, cache.values(block, first, slots))

    rows = jnp.zeros((*q.shape[:2], cache.capacity, q.shape[2], heads), jnp.float32)
    rows = jnp.concatenate([cache.fold_filled(score_slots, rows), scores(k)], axis=2)
    rows = jnp.where(jnp.expand_dims(mask, (0, 3, 4)), rows, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(rows, axis=2).astype(dtype)
    return cache.fold_filled(sum_slots, summed(weights[:, :, cache.capacity :], v)).astype(dtype)
