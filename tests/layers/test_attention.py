import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers.attention import attention_weights, weighted_values

MASK = np.array([[1, 0, 1, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 1, 0]], bool)


def _reference(q, k, v, mask):
    """One query sequence [R, d] against keys and values [S, d], in float64."""
    scores = np.where(mask, np.float64(q) @ np.float64(k).T / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ np.float64(v)


@pytest.mark.parametrize('axis', ['space', 'time'])
def test_attention_along_each_axis(axis):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 3, 7, 2, 5))
    k, v = (jax.random.normal(key, (2, 3 if axis == 'space' else 5, 7, 2, 5)) for key in keys[1:])
    mask = None if axis == 'space' else jnp.asarray(MASK)
    out = np.asarray(weighted_values(attention_weights(q, k, mask, axis), v, axis))
    for clip, head in np.ndindex(2, 2):
        for other in range(3 if axis == 'space' else 7):
            at = (clip, other, slice(None), head) if axis == 'space' else (clip, slice(None), other, head)
            expected = _reference(q[at], k[at], v[at], True if mask is None else MASK)
            np.testing.assert_allclose(out[at], expected, atol=1e-6)


def test_weights_are_exactly_zero_where_not_allowed():
    q, k = (100 * jax.random.normal(jax.random.key(i), (1, rows, 2, 1, 3)) for i, rows in enumerate((3, 5)))
    weights = np.asarray(attention_weights(q, k, jnp.asarray(MASK), 'time'))
    assert (weights[..., ~MASK] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


def test_softmax_stays_in_float32():
    """300 equal keys share 1: summed in bfloat16 the normaliser would stop growing at 256."""
    q, k = jnp.zeros((1, 1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 300, 1, 1, 8), jnp.bfloat16)
    weights = attention_weights(q, k, None, 'time')
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(weights), 1 / 300, rtol=4e-3)
