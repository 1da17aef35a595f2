"""bfloat16 for the matrix products, float32 for everything that accumulates or is kept."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiModelConfig
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.models.magi import Magi
from tests.random_params import random_params

SHAPE = ClipShape(frames=3, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)
CONFIG = MagiModelConfig(width=32, blocks=2, heads=2, mlp_width=48)


@pytest.fixture(scope='module')
def inputs():
    rng = np.random.default_rng(1)
    observed, masked = np.float32(rng.normal(size=(2, 2, 3, 5, 3)))
    mask, level = rng.random((2, 3, 5)) < 0.6, rng.integers(0, 6, (2, 3))
    return observed, masked, mask, Conditions(np.asarray([1, 7]), level)


@pytest.fixture(scope='module')
def params(inputs):
    return {'params': random_params(lambda key: Magi(CONFIG, SHAPE).init(key, *inputs)['params'], scale=0.05)}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
                    yield from _equations(getattr(inner, 'jaxpr', inner))


def test_bfloat16_stays_close_and_keeps_float32_where_it_matters(inputs, params):
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    models = (Magi(CONFIG, SHAPE, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    exact, rounded = (jax.jit(model.apply)(params, *inputs) for model in models)
    assert rounded.dtype == jnp.float32
    assert 0 < np.std(rounded - exact) < 2e-2 * np.std(exact)


def test_norms_and_softmax_are_computed_in_float32(inputs, params):
    jaxpr = jax.make_jaxpr(Magi(CONFIG, SHAPE, jnp.bfloat16).apply)(params, *inputs)
    dtypes = collections.defaultdict(set)
    for equation in _equations(jaxpr.jaxpr):
        dtypes[equation.primitive.name].update(str(v.aval.dtype) for v in equation.invars if hasattr(v.aval, 'dtype'))
    assert dtypes['exp'] == {'float32'}  # softmax
    assert dtypes['rsqrt'] == {'float32'}  # LayerNorm
    assert dtypes['reduce_sum'] == {'float32'}
    assert dtypes['dot_general'] == {'bfloat16'}  # every product
