"""Joint attention against attention with a dense mask over all tokens, in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers import dense_attention
from magi_jax.layers.frame_attention import frame_attention
from magi_jax.masking.frames import causal, complete_teacher_forcing

CLIPS, HEADS, WIDTH = 2, 3, 5
ARBITRARY = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
VISIBLE = {
    'causal': causal(3),
    'ctf': complete_teacher_forcing(2),
    'arbitrary': ARBITRARY,
    'one': np.ones((1, 1), bool),
}


def _textbook(q, k, v, visible):
    scores = jnp.einsum('brnhd,bsmhd->bhrnsm', q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(visible[None, None, :, None, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=(-2, -1))
    return jnp.einsum('bhrnsm,bsmhd->brnhd', weights, v)


def _inputs(visible, queries, keys, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    rows, frames = visible.shape
    q, gradient = np.float32(rng.normal(size=(2, CLIPS, rows, queries, HEADS, width)))
    k, v = np.float32(rng.normal(size=(2, CLIPS, frames, keys, HEADS, width)))
    return q, k, v, gradient


def _value_and_gradients(attend, *inputs):
    @jax.jit
    def run(q, k, v, gradient):
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(gradient)

    return run(*inputs)


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize(('queries', 'keys'), [(7, 7), (11, 13)])
@pytest.mark.parametrize('name', VISIBLE)
def test_value_and_gradients_are_the_textbook_ones(name, queries, keys, chunked, monkeypatch):
    if chunked:  # chunks of several queries, the last one padded
        monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4 * CLIPS * HEADS * keys * 5)
    inputs = _inputs(VISIBLE[name], queries, keys)
    ours = _value_and_gradients(lambda *qkv: frame_attention(*qkv, VISIBLE[name], 'xla'), *inputs)
    theirs = _value_and_gradients(lambda *qkv: _textbook(*qkv, VISIBLE[name]), *inputs)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our, their, atol=1e-5)


def test_a_frame_that_is_not_visible_may_hold_anything():
    visible = ARBITRARY[:2]
    q, k, v, gradient = _inputs(visible, 7, 7)
    whole = _value_and_gradients(lambda *qkv: frame_attention(*qkv, visible), q, k, v, gradient)
    k[:, 1], v[:, 1] = np.nan, np.nan
    for one, other in zip(whole, _value_and_gradients(lambda *qkv: frame_attention(*qkv, visible), q, k, v, gradient)):
        np.testing.assert_array_equal(one, other)


def test_a_query_frame_that_sees_nothing_is_refused():
    visible = np.array([[1, 0], [0, 0]], bool)
    with pytest.raises(ValueError, match=r'query frames \[1\] see no key frame'):
        frame_attention(*_inputs(visible, 2, 2)[:3], visible)


def test_softmax_and_sums_over_chunks_stay_in_float32(monkeypatch):
    """The gradient of one value is a sum over 512 chunks: in bfloat16 it would stop growing at 256 equal terms."""
    monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4)
    q = jnp.zeros((1, 1, 512, 1, 8), jnp.bfloat16)
    k = v = jnp.ones((1, 1, 1, 1, 8), jnp.bfloat16)
    visible = np.ones((1, 1), bool)
    out, backward = jax.vjp(lambda v: frame_attention(q, k, v, visible), v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(backward(jnp.ones_like(q))[0], 512)


def test_scores_of_a_clip_are_never_in_memory():
    """Forward and backward: a chunk of scores and a few arrays of its size, whatever the number of frames."""
    visible, tokens, wide = causal(3), 512, 16
    shape = jax.ShapeDtypeStruct((1, len(visible), tokens, 1, wide), jnp.float32)

    def loss(*qkv):
        return jnp.sum(frame_attention(*qkv, visible) ** 2)

    def temporaries(limit):
        dense_attention.SCORE_BYTES, kept = limit, dense_attention.SCORE_BYTES
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        dense_attention.SCORE_BYTES = kept
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(2**16) < 4 * tokens**2 < temporaries(2**30)
