import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers.cached_attention import cached_attention
from magi_jax.layers.kv_cache import SLOTS_AT_ONCE, KVCache
from magi_jax.masking.frames import cached_causal


def _textbook(q, k, v, mask, heads):
    """q [B, R, N, D], k, v [B, S, N, D], mask [R, S], in float64."""
    q, k, v = (np.float64(x).reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))
    scores = np.einsum('brnhd,bsnhd->bnhrs', q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(mask, scores, -np.inf))
    out = np.einsum('bnhrs,bsnhd->brnhd', weights / weights.sum(-1, keepdims=True), v)
    return out.reshape(*out.shape[:-2], -1)


@pytest.mark.parametrize('merged', [False, True])
@pytest.mark.parametrize(('slots', 'lengths'), [(5, (0, 3, 5)), (3 * SLOTS_AT_ONCE, (0, 1, 16, 17, 33, 48))])
def test_cached_attention_is_attention_over_old_and_new_frames(slots, lengths, merged):
    """Of a long window only the parts that hold frames are read: what lies beyond is no number here."""
    clips, rows, sites, heads, width, block = 2, 2, 7, 3, 15, 1
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (clips, rows, sites, width)) for key in keys[:3])
    old_k, old_v = (jax.random.normal(key, (3, clips, slots, sites, width)) for key in keys[3:])

    @jax.jit
    def attend(k_cache, v_cache, length):
        mask = cached_causal(rows, slots, length)
        return cached_attention(q, k, v, KVCache(k_cache, v_cache, length), jnp.int32(block), mask, heads, merged)

    for length in lengths:
        joined = [jnp.concatenate([old[block, :, :length], new], axis=1) for old, new in ((old_k, k), (old_v, v))]
        expected = _textbook(q, *joined, np.asarray(cached_causal(rows, length, length)), heads)
        read = slots if slots % SLOTS_AT_ONCE else -(-length // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
        unread = (jnp.arange(slots) >= read)[:, None, None]
        out = attend(*(jnp.where(unread, jnp.nan, old) for old in (old_k, old_v)), length)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize('merged', [False, True])
def test_softmax_stays_in_float32(merged):
    """301 equal keys share 1: summed in bfloat16 the normaliser would stop growing at 256."""
    cache = KVCache(*jnp.zeros((2, 1, 1, 300, 1, 8), jnp.bfloat16), jnp.int32(300))
    cache = cache.replace(v=jnp.ones_like(cache.v))
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    out = cached_attention(q, q, q, cache, jnp.int32(0), jnp.ones((1, 301), bool), 1, merged)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 300 / 301, rtol=8e-3)
