import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers import dense_attention
from magi_jax.layers.cross_attention import cross_attention

CLIPS, ROWS, TOKENS, STATES, HEADS, WIDTH = 2, 3, 7, 11, 3, 5


def _textbook(q, k, v, mask):
    scores = jnp.einsum('brnhd,bshd->bhrns', q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None, None], scores, -jnp.inf))
    return jnp.einsum('bhrns,bshd->brnhd', weights, v)


@pytest.mark.parametrize('chunked', [False, True])
def test_value_and_gradients_are_the_textbook_ones(chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4 * CLIPS * HEADS * STATES * 5)
    rng = np.random.default_rng(0)
    q, gradient = np.float32(rng.normal(size=(2, CLIPS, ROWS, TOKENS, HEADS, WIDTH)))
    k, v = np.float32(rng.normal(size=(2, CLIPS, STATES, HEADS, WIDTH)))
    mask = np.arange(STATES)[None] < np.array([[1], [8]])

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v):
        out, backward = jax.vjp(lambda *qkv: attend(*qkv, mask), q, k, v)
        return out, *backward(gradient)

    out, dq, dk, dv = run(cross_attention, q, k, v)
    for ours, theirs in zip((out, dq, dk, dv), run(_textbook, q, k, v)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(dk[0, 1:], 0)  # padding gets no gradient
    moved = np.where(mask[..., None, None], k, 9), np.where(mask[..., None, None], v, -9)
    np.testing.assert_array_equal(run(cross_attention, q, *moved)[0], out)
