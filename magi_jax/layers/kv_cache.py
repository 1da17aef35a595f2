"""The frame-level key/value cache of the temporal layers: a value, passed in and out, never module state.

Dimension key: L blocks, B clips, F frame slots, R new frames, N sites, D width (heads merged, so D lies on TPU lanes).
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

SLOTS_AT_ONCE = 16


@flax.struct.dataclass
class KVCache:
    """Keys and values of finished frames.

    Attributes:
      k: [L, B, F, N, D].
      v: [L, B, F, N, D].
      length: int32 scalar, slots 0..length-1 hold frames.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def keys(self, block: jax.Array, first: jax.Array, slots: int) -> jax.Array:
        """[B, slots, N, D] of a block, from slot `first` on.

        Cut from the whole cache where it is used, so that the compiler reads it in place: as the input of a scan over
        blocks each block's part is copied first (half of a sampler's time at 16 clips).
        """
        return _cut(self.k, block, first, slots)

    def values(self, block: jax.Array, first: jax.Array, slots: int) -> jax.Array:
        """As `keys`."""
        return _cut(self.v, block, first, slots)

    def over_filled(self, step: Callable[[jax.Array | int, int, jax.Array], jax.Array], start: jax.Array) -> jax.Array:
        """Folds `step(first slot, number of slots, carry) -> carry` over the slots up to the last filled one.

        A long window costs what its frames cost: it is read in parts of `SLOTS_AT_ONCE` slots, as many as hold frames.
        One that is shorter, or no multiple of them, is read as one part.
        """
        if self.capacity <= SLOTS_AT_ONCE or self.capacity % SLOTS_AT_ONCE:
            return step(0, self.capacity, start)
        parts = (self.length + SLOTS_AT_ONCE - 1) // SLOTS_AT_ONCE
        return jax.lax.fori_loop(0, parts, lambda i, carry: step(i * SLOTS_AT_ONCE, SLOTS_AT_ONCE, carry), start)


def _cut(cached: jax.Array, block: jax.Array, first: jax.Array | int, slots: int) -> jax.Array:
    _, clips, _, sites, width = cached.shape
    return jax.lax.dynamic_slice(cached, (block, 0, first, 0, 0), (1, clips, slots, sites, width))[0]


def empty_cache(blocks: int, clips: int, capacity: int, sites: int, width: int, dtype: jnp.dtype) -> KVCache:
    """A cache with room for `capacity` frames and none in it."""
    shape = (blocks, clips, capacity, sites, width)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def append(cache: KVCache, k: jax.Array, v: jax.Array, frames: jax.Array | int) -> KVCache:
    """Writes the first `frames` of the new rows [L, B, R, N, D] behind the cached ones.

    All R rows are written; those past `frames` lie beyond the new length, where no one reads and the next append
    overwrites. The caller keeps length + R within the capacity (a dynamic slice would be clamped silently).
    """
    start = (0, 0, cache.length, 0, 0)
    return KVCache(
        k=jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), start),
        v=jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), start),
        length=cache.length + frames,
    )
