"""The frame-level key/value cache of the temporal layers: a value, passed in and out, never module state.

Dimension key: L blocks, B clips, F frame slots, R new frames, N sites, D width (heads merged, so D lies on TPU lanes).
"""

import flax.struct
import jax
import jax.numpy as jnp


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
