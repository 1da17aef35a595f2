"""Parameters to PyTorch and back: nothing lost, nothing left over, and every fault named."""

import jax
import numpy as np
import pytest

pytest.importorskip('torch', reason='the torch extra is not installed')

from magi_jax.benchmarks.torch_model import Magi
from magi_jax.benchmarks.weights import from_state_dict, to_state_dict
from magi_jax.config import ConfigError
from tests.benchmarks import jax_side, torch_side
from tests.benchmarks.jax_side import BASE, VARIANTS


@pytest.mark.parametrize('name', VARIANTS)
def test_there_and_back(name):
    params, model = jax_side.params(VARIANTS[name]), torch_side.model(VARIANTS[name])
    back = from_state_dict(model.state_dict(), params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert sum(p.numel() for p in model.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_arrays_lie_where_pytorch_wants_them():
    params, state = jax_side.params(BASE), torch_side.model(BASE).state_dict()
    kernel = np.asarray(params['trunk']['trunk']['blocks']['spatial_attention']['qkv']['kernel'])
    query, key, value = state['trunk.blocks.1.spatial_attention.qkv.weight'].chunk(3)
    for number, part in enumerate((query, key, value)):
        np.testing.assert_array_equal(part, kernel[1, :, number].T)
    np.testing.assert_array_equal(state['head.final.weight'], params['head']['final']['kernel'].T)


def test_every_fault_is_named():
    params, shape = jax_side.params(BASE), jax_side.objective(BASE).shape
    expected = Magi(BASE, shape).state_dict()
    spoiled = params | {'head': dict(params['head'], extra={'bias': np.zeros(3)}, final={'bias': np.zeros(3)})}
    with pytest.raises(ConfigError) as error:
        to_state_dict(spoiled, expected)
    faults = ('missing head.final.weight', 'unexpected head.extra.bias', 'head.final.bias is [3], not [24]')
    assert all(fault in str(error.value) for fault in faults) and '\n' not in str(error.value)
    with pytest.raises(ConfigError, match=r'unexpected trunk\.observed_table'):
        torch_side.Magi(VARIANTS['MTF'], shape).load_params(params)

    state = to_state_dict(params, expected)
    state['trunk.blocks.2.spatial_norm.bias'] = state.pop('trunk.blocks.1.spatial_norm.bias')
    with pytest.raises(ConfigError) as error:
        from_state_dict(state, params)
    assert 'missing trunk.blocks.1.spatial_norm.bias' in str(error.value)
    assert 'unexpected trunk.blocks.2.spatial_norm.bias' in str(error.value)
    state = to_state_dict(params, expected) | {'head.final.bias': np.zeros(3)}
    with pytest.raises(ConfigError, match=r'head/final/bias is \[3\], not \[24\]'):
        from_state_dict(state, params)
