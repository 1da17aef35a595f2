"""The frame-level key/value cache of the temporal layers. It is a value: functions take it and return it.

Dimension key: L blocks, B clips, F frame slots, R new frames, N sites, D width (merged heads, on TPU lanes).
"""

from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp

SLOTS_AT_ONCE = 16
Carry = TypeVar('Carry')


@flax.struct.dataclass
class KVCache:
    """Keys and values of finished frames.

    Attributes:
      k: [L, B, F, N, D].
      v: [L, B, F, N, D].
      length: int32 scalar; slots 0..length-1 hold frames.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def keys(self, block: jax.Array, first: jax.Array, slots: int) -> jax.Array:
        """Return the keys [B, slots, N, D] of a block from slot `first` on.

        The slice is taken where it is used, so the compiler reads the cache in place. As the input of a scan over
        blocks the cache would be copied block by block, which took half of the sampling time at 16 clips.
        """
        return _slice(self.k, block, first, slots)

    def values(self, block: jax.Array, first: jax.Array, slots: int) -> jax.Array:
        """Return the values of a block; arguments as in `keys`."""
        return _slice(self.v, block, first, slots)

    def fold_filled(
        self, step: Callable[[jax.Array | int, int, Carry], Carry], start: Carry, slots: int = SLOTS_AT_ONCE
    ) -> Carry:
        """Fold `step(first slot, number of slots, carry) -> carry` over the filled slots, and return the last carry.

        A long cache is read in chunks of `slots` slots, and only chunks with frames are read. A cache that is shorter
        than a chunk, or no multiple of one, is read whole.
        """
        if self.capacity <= slots or self.capacity % slots:
            return step(0, self.capacity, start)
        parts = (self.length + slots - 1) // slots
        return jax.lax.fori_loop(0, parts, lambda i, carry: step(i * slots, slots, carry), start)


def _slice(cached: jax.Array, block: jax.Array, first: jax.Array | int, slots: int) -> jax.Array:
    _, clips, _, sites, width = cached.shape
    return jax.lax.dynamic_slice(cached, (block, 0, first, 0, 0), (1, clips, slots, sites, width))[0]


def empty_cache(blocks: int, clips: int, capacity: int, sites: int, width: int, dtype: jnp.dtype) -> KVCache:
    """Return an empty cache with room for `capacity` frames."""
    shape = (blocks, clips, capacity, sites, width)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def append(cache: KVCache, k: jax.Array, v: jax.Array, frames: jax.Array | int) -> KVCache:
    """Append the first `frames` of the new rows [L, B, R, N, D] to the cache.

    All R rows are written. Rows past `frames` lie beyond the new length: nothing reads them, and the next append
    overwrites them. The caller must keep length + R within the capacity, because a dynamic slice is clamped silently.
    """
    start = (0, 0, cache.length, 0, 0)
    return KVCache(
        k=jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), start),
        v=jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), start),
        length=cache.length + frames,
    )
