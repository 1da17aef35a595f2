import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.layers.kv_cache import append, empty_cache


def test_appended_frames_lie_behind_each_other():
    k, v = jax.random.normal(jax.random.key(0), (2, 3, 2, 5, 7, 4))
    cache = empty_cache(3, 2, 5, 7, 4, jnp.float32)
    assert cache.capacity == 5 and cache.length == 0
    for first, last in [(0, 2), (2, 3), (3, 5)]:
        cache = append(cache, k[:, :, first:last], v[:, :, first:last], last - first)
        assert cache.length == last
        np.testing.assert_array_equal(cache.k[:, :, :last], k[:, :, :last])
        np.testing.assert_array_equal(cache.v[:, :, :last], v[:, :, :last])


def test_rows_beyond_the_count_are_overwritten_by_the_next_append():
    rows = jnp.ones((1, 1, 4, 2, 3))
    cache = append(empty_cache(1, 1, 6, 2, 3, jnp.float32), rows, rows, 1)
    cache = append(cache, 2 * rows, 2 * rows, 4)
    assert cache.length == 5
    np.testing.assert_array_equal(cache.k[0, 0, :, 0, 0], [1, 2, 2, 2, 2, 0])


def test_cache_keeps_its_dtype():
    rows = jnp.ones((1, 1, 1, 2, 3))
    cache = append(empty_cache(1, 1, 2, 2, 3, jnp.bfloat16), rows, rows, 1)
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
