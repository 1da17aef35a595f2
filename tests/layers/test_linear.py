"""GELU against its definition in float64; the Linear layer is tested where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from magi_jax.layers.linear import Linear, gelu


def test_gelu_and_its_slope_are_exact():
    x = np.linspace(-12, 12, 9973, dtype=np.float32)
    exact = np.float64(x)
    density = np.exp(-np.square(exact) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact * ndtr(exact), rtol=2e-7, atol=6e-7)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, ndtr(exact) + exact * density, rtol=2e-7, atol=6e-7)
    assert gelu(jnp.ones((2,), jnp.bfloat16)).dtype == jnp.bfloat16


def test_gelu_keeps_nothing_but_its_input_for_the_backward_pass():
    x = jnp.ones((5, 7))
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert [leaf.shape for leaf in kept] == [x.shape]


@pytest.mark.parametrize(('features', 'axes'), [(5, ('embed', 'mlp')), ((3, 5), ('embed', None, 'heads'))])
def test_a_linear_layer_without_bias_is_its_product_alone(features, axes):
    x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 7)))
    layer = Linear(features, axes, jnp.float32, use_bias=False)
    params = layer.init(jax.random.key(0), x)
    assert list(params['params']) == ['kernel']
    kernel = params['params']['kernel'].unbox()
    out = layer.apply(params, x)
    outputs, kernels = ([out], [kernel]) if features == 5 else (out, np.moveaxis(kernel, 1, 0))
    for ours, matrix in zip(outputs, kernels, strict=True):
        np.testing.assert_allclose(ours, x @ matrix, atol=1e-6)
