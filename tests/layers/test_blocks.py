import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiModelConfig, Remat
from magi_jax.layers.blocks import Block
from magi_jax.layers.dropout import ClipDropout
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.trunk import Trunk
from magi_jax.masking.frames import complete_teacher_forcing
from tests.random_params import random_params

CONFIG = MagiModelConfig(width=24, blocks=2, heads=3, mlp_width=40, dropout=0.2)
FRAMES, SITES = 3, 5


X, CONDITIONING = np.float32(np.random.default_rng(0).normal(size=(2, 2, 2 * FRAMES, SITES, CONFIG.width)))
MASK = complete_teacher_forcing(FRAMES)
REMATS = [remat for remat in typing.get_args(Remat) if remat not in ('none', 'offload')]


def _trunk(params, remat='none', dropout=None, unroll=1, layout=SINGLE_DEVICE):
    trunk = Trunk(Block, CONFIG, jnp.float32, remat, unroll, layout)
    return trunk.apply({'params': params}, X, None, MASK, CONDITIONING, dropout)


def _dropout(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return ClipDropout(keys, jnp.arange(2 * FRAMES), 2 * FRAMES, CONFIG.dropout)


def _block(params, x):
    return Block(CONFIG, jnp.float32).apply({'params': params}, x, 0, None, MASK, CONDITIONING, None)


@pytest.fixture(scope='module')
def params():
    return random_params(
        lambda key: Trunk(Block, CONFIG, jnp.float32).init(key, X, None, MASK, CONDITIONING, None)['params']
    )


@pytest.mark.parametrize('unroll', [1, 2])
def test_scanned_trunk_is_a_loop_over_its_blocks(params, unroll):
    trunk = jax.jit(lambda params: _trunk(params, unroll=unroll))
    assert f'unroll={unroll}' in str(jax.make_jaxpr(trunk)(params))
    out, (k, v) = trunk(params)
    block = jax.jit(_block)
    x = X
    for depth in range(CONFIG.blocks):
        x, (own_k, own_v) = block(jax.tree.map(lambda leaf, d=depth: leaf[d], params['blocks']), x)
        np.testing.assert_allclose(k[depth], own_k, atol=1e-5)
        np.testing.assert_allclose(v[depth], own_v, atol=1e-5)
    np.testing.assert_allclose(out, x, atol=1e-5)


def test_block_is_the_textbook_pre_norm_layer_twice(params):
    """The same block written out in numpy, from nothing but its parameters."""
    x, mask, conditioning = (np.float64(a) for a in (X, MASK, CONDITIONING))
    p = jax.tree.map(lambda leaf: np.float64(leaf[0]), params['blocks'])
    expected = x + conditioning
    for layer in ('spatial', 'temporal'):
        h = _layer_norm(expected, p[f'{layer}_norm'])
        allowed = mask > 0 if layer == 'temporal' else True
        expected = expected + _attention(h, p[f'{layer}_attention'], allowed, 'brnd' if layer == 'spatial' else 'bnrd')
        h = _linear(_layer_norm(expected, p[f'{layer}_mlp_norm']), p[f'{layer}_mlp']['up'])
        gelu = h * 0.5 * (1 + np.vectorize(math.erf)(h / np.sqrt(2)))
        expected = expected + _linear(gelu, p[f'{layer}_mlp']['down'])
    one = jax.tree.map(lambda leaf: leaf[0], params['blocks'])
    out, _ = jax.jit(_block)(one, X)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_kernels_of_a_gpu_compute_the_same_trunk(params):
    """In bfloat16, with dropout, value and gradients; in float32 they are not used."""

    def loss(params, layout, dtype):
        trunk = Trunk(Block, CONFIG, dtype, 'dots', layout=layout)
        return jnp.sum(trunk.apply({'params': params}, X, None, MASK, CONDITIONING, _dropout(0))[0] ** 2)

    kernels = [
        'pallas_call' in str(jax.make_jaxpr(jax.grad(loss), static_argnums=(1, 2))(params, Layout(fused=fused), dtype))
        for fused, dtype in [(False, jnp.bfloat16), (True, jnp.float32), (True, jnp.bfloat16)]
    ]
    assert kernels == [False, False, True]
    plain, fused = (
        jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))(params, Layout(fused=fused), jnp.bfloat16)
        for fused in (False, True)
    )
    for ours, expected in zip(*map(jax.tree.leaves, (fused, plain))):
        assert np.linalg.norm(ours - expected) <= 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize('remat', ['none', 'dots'])
def test_no_constant_as_large_as_the_draws_enters_the_loop(params, remat):
    """A scan keeps what is the same in all blocks: for a number in `jnp.where`, an array of its condition's size."""
    program = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(_trunk(params, remat, _dropout(0))[0])))(params)
    draws = X.shape[0] * 2 * FRAMES * SITES * CONFIG.mlp_width
    filled = {
        outvar
        for eqn in program.eqns
        if all(invar.aval.shape == () for invar in eqn.invars)
        for outvar in eqn.outvars
        if outvar.aval.size >= draws
    }
    loops = [eqn for eqn in program.eqns if eqn.primitive.name == 'scan']
    assert len(loops) == 2
    assert not [invar for eqn in loops for invar in eqn.invars if invar in filled]


@pytest.mark.parametrize('unroll', [1, CONFIG.blocks])
def test_without_a_loop_remat_is_kept_from_common_subexpressions(params, unroll):
    """On an H200 the paper's model, unrolled, kept as much with `dots` as with `none`."""
    program = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(_trunk(params, 'block', unroll=unroll)[0])))(params)
    assert ('prevent_cse=True' in str(program)) == (unroll == CONFIG.blocks)


def _linear(x, p):
    return x @ p['kernel'] + p['bias']


def _layer_norm(x, p):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normed * p['scale'] + p['bias']


def _attention(x, p, allowed, order):
    """Attention over the third axis of `order`."""
    qkv = np.einsum('brni,isd->sbrnd', x, p['qkv']['kernel']) + p['qkv']['bias'][:, None, None, None]
    q, k, v = np.einsum(f'sbrnd->s{order}', qkv)
    out = np.zeros_like(q)
    width = CONFIG.width // CONFIG.heads
    for head in range(CONFIG.heads):
        own = slice(head * width, (head + 1) * width)
        scores = np.where(allowed, q[..., own] @ k[..., own].swapaxes(-1, -2) / np.sqrt(width), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[..., own] = weights / weights.sum(-1, keepdims=True) @ v[..., own]
    return _linear(np.einsum(f'{order}->brnd', out), p['out'])


@pytest.mark.parametrize('remat', REMATS)
def test_remat_changes_nothing(params, remat):
    def loss(params, remat):
        return jnp.sum(_trunk(params, remat)[0] ** 2)

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (plain, gradient), (rematted, rematted_gradient) = step(params, 'none'), step(params, remat)
    assert plain == pytest.approx(float(rematted), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(rematted_gradient)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max()))
    # More than GELU's slope is computed again.
    counts = [str(jax.make_jaxpr(lambda p, r=r: loss(p, r))(params)).count('remat2[') for r in ('none', remat)]
    assert counts[0] < counts[1]


def test_mlp_in_the_temporal_layer_only():
    config = MagiModelConfig(width=24, blocks=1, heads=3, mlp_width=40, mlp_layers='temporal')
    x, mask = jnp.zeros((1, 2, 1, 24)), jnp.ones((2, 2), bool)
    trunk = Trunk(Block, config, jnp.float32, 'none')
    shapes = jax.eval_shape(lambda key: trunk.init(key, x, None, mask, None, None), jax.random.key(0))
    assert sorted(shapes['params']['blocks']) == [
        'spatial_attention',
        'spatial_norm',
        'temporal_attention',
        'temporal_mlp',
        'temporal_mlp_norm',
        'temporal_norm',
    ]


def test_dropout_differs_by_its_key_alone(params):
    run = jax.jit(lambda seed, layout: _trunk(params, dropout=_dropout(seed), layout=layout), static_argnums=1)
    out, keys_values = run(0, SINGLE_DEVICE)
    np.testing.assert_array_equal(out, run(0, SINGLE_DEVICE)[0])
    assert jnp.abs(out - run(1, SINGLE_DEVICE)[0]).mean() > 0.05
    # Sites side by side in one sequence draw, and compute, what they do alone.
    tiled = run(0, Layout(lanes=SITES * 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tiled, (out, keys_values))


def test_gradients_of_a_tpus_layout_are_the_same(params):
    def squares(params, layout):
        return (_trunk(params, dropout=_dropout(0), layout=layout)[0] ** 2).sum()

    gradient = jax.jit(jax.grad(squares), static_argnums=1)
    plain, tiled = gradient(params, SINGLE_DEVICE), gradient(params, Layout(lanes=SITES * 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), tiled, plain)
