import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox

from magi_jax.config import MagiHeadConfig
from magi_jax.models.diffusion_head import DiffusionHead, timestep_embedding
from tests.random_params import random_params

CONFIG, TOKEN, WIDTH = MagiHeadConfig(width=20, blocks=2), 3, 13
RNG = np.random.default_rng(0)
X, T, Z = np.float32(RNG.normal(size=(7, TOKEN))), np.arange(7) * 166, np.float32(RNG.normal(size=(7, WIDTH)))


def test_timestep_embedding_value_by_value():
    table = timestep_embedding(jnp.asarray([[0, 7, 999]]))
    assert table.shape == (1, 3, 256) and table.dtype == jnp.float32
    for column, t in enumerate((0, 7, 999)):
        angle = t * 10000 ** (-np.arange(128) / 128)
        np.testing.assert_allclose(table[0, column], np.concatenate([np.cos(angle), np.sin(angle)]), atol=1e-4)


def test_output_is_zero_at_initialisation_and_init_is_mars():
    head = DiffusionHead(MagiHeadConfig(width=64, blocks=1), TOKEN, jnp.float32)
    params = unbox(jax.jit(head.init)(jax.random.key(0), X, T, Z))['params']
    np.testing.assert_array_equal(jax.jit(head.apply)({'params': params}, X, T, Z), np.zeros((7, 2 * TOKEN)))
    kernels = {name: layer['kernel'] for name, layer in params.items() if 'kernel' in layer}
    for name in ('time_in', 'time_out'):
        assert float(kernels[name].std()) == pytest.approx(0.02, rel=0.1)
    for name in ('final', 'final_modulation'):
        assert not kernels[name].any()
    for name in ('condition', 'token_in'):
        bound = (6 / sum(kernels[name].shape)) ** 0.5
        assert 0.9 * bound < float(jnp.abs(kernels[name]).max()) <= bound
    assert not params['block_0']['modulation']['kernel'].any()
    assert params['block_0']['up']['kernel'].any()


def test_head_is_mars_written_out():
    head = DiffusionHead(CONFIG, TOKEN, jnp.float32)
    p = jax.tree.map(np.asarray, random_params(lambda key: head.init(key, X, T, Z)['params']))

    def linear(x, p):
        return x @ np.float64(p['kernel']) + p['bias']

    def silu(x):
        return x / (1 + np.exp(-x))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    y = linear(silu(linear(np.float64(timestep_embedding(T)), p['time_in'])), p['time_out']) + linear(Z, p['condition'])
    h = linear(X, p['token_in'])
    for block in (p['block_0'], p['block_1']):
        shift, scale, gate = np.split(linear(silu(y), block['modulation']), 3, axis=-1)
        inner = (norm(h) * block['norm']['scale'] + block['norm']['bias']) * (1 + scale) + shift
        h = h + gate * linear(silu(linear(inner, block['up'])), block['down'])
    shift, scale = np.split(linear(silu(y), p['final_modulation']), 2, axis=-1)
    expected = linear(norm(h) * (1 + scale) + shift, p['final'])
    np.testing.assert_allclose(jax.jit(head.apply)({'params': p}, X, T, Z), expected, rtol=1e-4, atol=1e-4)


def test_rows_are_independent_and_conditions_broadcast():
    head = DiffusionHead(CONFIG, TOKEN, jnp.float32)
    p = {'params': random_params(lambda key: head.init(key, X, T, Z)['params'])}
    apply = jax.jit(head.apply)
    repeated = apply(p, np.stack([X, X + 1]), np.stack([T, T]), Z[None])
    np.testing.assert_allclose(repeated[0], apply(p, X, T, Z), atol=1e-5)
    changed = Z.copy()
    changed[3] += 1
    rows = np.abs(apply(p, X, T, changed) - apply(p, X, T, Z)).max(-1) > 1e-3
    assert rows.tolist() == [row == 3 for row in range(7)]


def test_bfloat16_products_leave_parameters_and_output_in_float32():
    exact, rounded = (DiffusionHead(CONFIG, TOKEN, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    shapes = jax.eval_shape(rounded.init, jax.random.key(0), X, T, Z)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    p = {'params': random_params(lambda key: exact.init(key, X, T, Z)['params'], scale=0.05)}
    out, reference = (jax.jit(head.apply)(p, X, T, Z) for head in (rounded, exact))
    assert out.dtype == jnp.float32
    assert 0 < np.std(out - reference) < 2e-2 * np.std(reference)
