import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers import cached_frame_attention as module
from magi_jax.layers import dense_attention
from magi_jax.layers.cached_frame_attention import cached_frame_attention
from magi_jax.layers.frame_attention import frame_attention
from magi_jax.layers.kv_cache import KVCache
from magi_jax.masking.frames import cached_causal, causal

CLIPS, ROWS, TOKENS, HEADS, WIDTH, BLOCK = 2, 2, 7, 3, 15, 1


def _split(x):
    return x.reshape(*x.shape[:-1], HEADS, -1)


@pytest.mark.parametrize(
    ('slots', 'lengths', 'implementation', 'chunked'),
    [
        (1, (0, 1), 'xla', False),
        (5, (0, 3, 5), 'xla', False),
        (6, (0, 1, 3, 4, 6), 'xla', True),
        (6, (0, 1, 3, 4, 6), 'interpret', False),
    ],
)
def test_new_frames_attend_as_in_the_whole_clip(slots, lengths, implementation, chunked, monkeypatch):
    """Slots are read in parts of three of six or all of five; slots that are not read hold no numbers."""
    monkeypatch.setattr(module, 'KEYS_AT_ONCE', 5 * TOKENS if slots == 5 else 3 * TOKENS)
    if chunked:
        monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4 * CLIPS * ROWS * HEADS * slots * TOKENS)
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (CLIPS, ROWS, TOKENS, WIDTH)) for key in keys[:3])
    old_k, old_v = (jax.random.normal(key, (3, CLIPS, slots, TOKENS, WIDTH)) for key in keys[3:])
    attend = jax.jit(
        lambda k_cache, v_cache, length: cached_frame_attention(
            q, k, v, KVCache(k_cache, v_cache, length), BLOCK, cached_causal(ROWS, slots, length), HEADS, implementation
        )
    )
    for length in lengths:
        joined = [_split(jnp.concatenate([old[BLOCK, :, :length], new], 1)) for old, new in ((old_k, k), (old_v, v))]
        expected = frame_attention(_split(q), *joined, causal(length + ROWS)[length:], 'xla')
        unread = (jnp.arange(slots) >= -(-length // 3) * 3)[:, None, None] & (slots == 6)
        out = attend(*(jnp.where(unread, jnp.nan, old) for old in (old_k, old_v)), length)
        np.testing.assert_allclose(_split(out), expected, atol=1e-5)


@pytest.mark.parametrize('implementation', ['xla', 'interpret'])
def test_each_frame_sees_what_the_mask_says(implementation):
    """A filled slot and a new frame that nobody sees change nothing; queries may be fewer than keys."""
    rng = np.random.default_rng(0)
    old = jnp.asarray(rng.normal(size=(2, 1, CLIPS, 3, TOKENS, WIDTH)), jnp.float32)
    q, k, v = jnp.asarray(rng.normal(size=(3, CLIPS, ROWS, TOKENS, WIDTH)), jnp.float32)
    mask = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 1]], bool)
    joined = [_split(jnp.concatenate([old[i, 0], new], axis=1)) for i, new in enumerate((k, v))]
    expected = frame_attention(_split(q[:, :, :4]), *joined, mask, 'xla')
    cache = KVCache(*old, jnp.int32(3))
    attend = jax.jit(cached_frame_attention, static_argnums=(6, 7))
    out = attend(q[:, :, :4], k, v, cache, jnp.int32(0), jnp.asarray(mask), HEADS, implementation)
    np.testing.assert_allclose(_split(out), expected, atol=1e-5)


def test_softmax_stays_in_float32():
    """301 equal keys share 1: summed in bfloat16 the normaliser would stop growing at 256."""
    cache = KVCache(*jnp.zeros((2, 1, 1, 300, 1, 8), jnp.bfloat16), jnp.int32(300))
    cache = cache.replace(v=jnp.ones_like(cache.v))
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    attend = jax.jit(cached_frame_attention, static_argnums=(6, 7))
    out = attend(q, q, q, cache, jnp.int32(0), jnp.ones((1, 301), bool), 1, 'xla')
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 300 / 301, rtol=8e-3)
