"""Draws are independent coin flips of the asked rate, and belong to clip, layer, purpose, row, site and feature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers.dropout import ClipDropout, drop, dropped_gelu, keep_factors

CLIPS, ROWS, SITES, FEATURES, NUMBERS, RATE = 2, 7, 64, 320, 31, 0.1


def _clips(seed=0, rate=RATE):
    return ClipDropout(jax.random.split(jax.random.key(seed), CLIPS), jnp.arange(ROWS), NUMBERS, rate)


def _kept(dropout, layer=0, purpose=0, rows=None, sites=None):
    """1 where kept, 0 where dropped: [B, r, n, F]."""
    rows, sites = jnp.arange(ROWS) if rows is None else rows, jnp.arange(SITES) if sites is None else sites
    ones = jnp.ones((CLIPS, len(rows), len(sites), FEATURES))
    return np.asarray(drop(ones, dropout.tokens(layer, rows, sites), purpose) > 0, np.float64)


@pytest.fixture(scope='module')
def kept():
    return _kept(_clips())


def _deviations(mean, count, rate=RATE):
    """How many standard deviations a mean of so many draws lies from what is expected."""
    return np.abs(mean - (1 - rate)) / np.sqrt(rate * (1 - rate) / count)


def test_the_rate_is_exact(kept):
    """In all, and of every clip, row, site and feature: the largest of hundreds of normal deviates stays below 5."""
    assert _deviations(kept.mean(), kept.size) < 4
    for axis in range(4):
        means = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1)
        assert _deviations(means.mean(1), means.shape[1]).max() < 5
    rare = _kept(_clips(rate=1e-3))  # bytes could not tell it from 1/256
    assert _deviations(rare.mean(), rare.size, 1e-3) < 4


def test_the_mean_is_kept():
    x = jnp.full((CLIPS, ROWS, SITES, FEATURES), 3.0, jnp.bfloat16)
    out = drop(x, _clips().tokens(0, jnp.arange(ROWS), jnp.arange(SITES)), 0)
    assert out.dtype == x.dtype and set(np.unique(np.float32(out))) == {0, np.float32(jnp.bfloat16(3 / 0.9))}
    assert np.float32(out).mean() == pytest.approx(3, rel=3e-3)
    assert drop(x, None, 0) is x


def test_neighbours_at_any_distance_are_independent(kept):
    """The autocorrelation at every shift of every axis, by FFT: 287,000 numbers that are normal but for chance."""
    spectrum = np.abs(np.fft.fftn(kept - kept.mean())) ** 2
    correlation = np.fft.ifftn(spectrum).real / (kept.size * RATE * (1 - RATE)) * np.sqrt(kept.size)
    correlation.flat[0] = 0
    assert np.abs(correlation).max() < 6 * np.sqrt(2)  # shifts by half an axis count each pair twice
    assert np.abs(spectrum / spectrum.mean()).max() < 25  # of exponential deviates: no period stands out


@pytest.mark.parametrize('other', [{'layer': 1}, {'purpose': 1}, {'seed': 1}], ids=str)
def test_other_draws_have_nothing_in_common(kept, other):
    others = _kept(_clips(other.pop('seed', 0)), **other)
    assert abs(np.mean((kept - kept.mean()) * (others - others.mean())) / 0.09) < 4 / np.sqrt(kept.size)


def test_draws_stay_with_their_token(kept):
    """Other rows, sites and features beside it, or in another order, change nothing for a token."""
    rows, sites = jnp.asarray([5, 2]), jnp.asarray([63, 0, 17])
    np.testing.assert_array_equal(_kept(_clips(), rows=rows, sites=sites), kept[:, rows][:, :, sites])
    features = jnp.asarray([300, 4])
    tokens = _clips().tokens(0, jnp.arange(ROWS), jnp.arange(SITES))
    np.testing.assert_array_equal(keep_factors(tokens.feature_bits(0, features), RATE) > 0, kept[..., features] > 0)


def test_gradients_are_dropped_alike(kept):
    tokens = _clips().tokens(0, jnp.arange(ROWS), jnp.arange(SITES))
    x = jnp.linspace(-3, 3, kept.size).reshape(kept.shape)
    out, backward = jax.vjp(lambda x: drop(x, tokens, 0), x)
    np.testing.assert_allclose(out, x * kept / (1 - RATE), rtol=1e-6)
    np.testing.assert_allclose(backward(x)[0], x * kept / (1 - RATE), rtol=1e-6)


def test_the_dropped_gelu_is_a_gelu_that_is_dropped(kept):
    draws = _clips().tokens(0, jnp.arange(ROWS), jnp.arange(SITES)).feature_bits(0, jnp.arange(FEATURES))
    x = jnp.linspace(-3, 3, kept.size).reshape(kept.shape)
    out, backward = jax.vjp(lambda x: dropped_gelu(x, draws, RATE), x)
    expected, slope = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False) * kept / (1 - RATE), x)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(backward(x)[0], slope(x)[0], atol=3e-6)


def test_nothing_but_the_words_is_kept_for_the_backward_pass():
    tokens = _clips().tokens(0, jnp.arange(ROWS), jnp.arange(SITES))
    x = jnp.ones((CLIPS, ROWS, SITES, FEATURES))
    saved = jax.eval_shape(lambda x: jax.vjp(lambda x: drop(x, tokens, 0), x)[1], x)
    assert max(leaf.size for leaf in jax.tree.leaves(saved)) < x.size / 100
