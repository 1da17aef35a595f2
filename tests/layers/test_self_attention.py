"""Attention differentiated by hand against JAX's own derivative: plain, by GPU kernels, with sites side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers.dropout import keep_factors
from magi_jax.layers.self_attention import self_attention, with_gradient_for_weights
from magi_jax.layers.site_tiles import SiteTiles, site_tiles
from magi_jax.masking.frames import complete_teacher_forcing

CLIPS, ROWS, SITES, HEADS, WIDTH = 2, 6, 12, 3, 5
Q, K, V, GRADIENT = np.float32(np.random.default_rng(0).normal(size=(4, CLIPS, ROWS, SITES, HEADS, WIDTH)))
CAUSAL = complete_teacher_forcing(ROWS // 2)


def _textbook(q, k, v, mask, draws, rate):
    scores = jnp.einsum('bgqhd,bgkhd->bghqk', q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask.reshape(-1, 1, 1, *mask.shape[-2:]), scores, -jnp.inf)
    weights = jax.nn.softmax(scores)
    return jnp.einsum('bghqk,bgkhd->bgqhd', weights if draws is None else weights * keep_factors(draws, rate), v)


def _draws(*shape):
    words = [jax.random.bits(jax.random.key(seed), (*shape[:2], 1, shape[2], 1)) for seed in (0, 1)]
    features = jnp.arange(HEADS * shape[2]).reshape(1, 1, HEADS, 1, shape[2])
    return tuple(words), features


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_value_and_gradients_are_the_textbook_ones(rate, masked, fused):
    inputs = [jnp.swapaxes(x, 1, 2) if masked else x for x in (Q, K, V, GRADIENT)]
    _compare(*inputs, jnp.asarray(CAUSAL) if masked else None, rate, fused)


@pytest.mark.parametrize('length', [64, 150])  # a whole block; two and a part
def test_kernels_take_several_blocks_and_heads_in_pieces(length):
    """And a mask for each clip."""
    rng = np.random.default_rng(1)
    inputs = np.float32(rng.normal(size=(4, CLIPS, 2, length, HEADS, 24)))
    for mask in (None, jnp.asarray(rng.random((CLIPS, length, length)) < 0.5) | jnp.eye(length, dtype=bool)[None]):
        _compare(*inputs, mask, 0.1, fused=True)


def _compare(q, k, v, gradient, mask, rate, fused):
    draws = _draws(*q.shape[:3]) if rate else None
    out, backward = jax.vjp(lambda *qkv: self_attention(*qkv, mask, draws, rate, fused), q, k, v)
    expected, expected_backward = jax.vjp(lambda *qkv: _textbook(*qkv, mask, draws, rate), q, k, v)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for ours, theirs in zip(backward(gradient), expected_backward(gradient)):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_sites_side_by_side_are_blind_to_each_other():
    """In time: as one site at a time, in value and gradients; padding of the rows gets none and gives none."""
    tiles = site_tiles(ROWS, SITES, lanes=50)
    assert tiles == SiteTiles(ROWS, sites=6, padding=2)

    def packed(tiles):
        def attend(*qkv):
            return tiles.unpack(self_attention(*map(tiles.pack, qkv), tiles.mask(jnp.asarray(CAUSAL)), None, 0.0))

        out, backward = jax.vjp(attend, Q, K, V)
        return out, *backward(GRADIENT)

    for ours, alone in zip(packed(tiles), packed(SiteTiles(ROWS))):
        np.testing.assert_allclose(ours, alone, atol=2e-6)


def test_tiles_fit_the_lanes_and_divide_the_sites():
    assert site_tiles(31, 256, 128) == SiteTiles(31, sites=4, padding=1)
    assert site_tiles(31, 257, 128) == SiteTiles(31, sites=1, padding=1)
    assert site_tiles(16, 6, 128) == SiteTiles(16, sites=6, padding=0)
    assert site_tiles(100, 256, 128) == SiteTiles(100)
    assert site_tiles(31, 256, 1) == SiteTiles(31)


@pytest.mark.parametrize('width', [24, 20, 5])  # whole registers, parts of them, none
def test_the_gradient_for_weights_is_the_gradient(width):
    x, gradient = np.float32(np.random.default_rng(0).normal(size=(2, CLIPS, ROWS, SITES, width)))
    out, backward = jax.vjp(with_gradient_for_weights, x)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(backward(gradient)[0], gradient)
