"""Converts parameters of the JAX model to the state dict of the PyTorch reference and back. Needs no torch.

The two trees have the same module names; they differ in what follows:

  JAX                                  PyTorch
  trunk/trunk/blocks/* stacked [L,...] trunk.blocks.0.* ... trunk.blocks.{L-1}.*
  head/block_0/*                       head.blocks.0.*
  */kernel [in, out]                   *.weight [out, in]
  */qkv/kernel [D, 3, D], bias [3, D]  *.qkv.weight [3 D, D], bias [3 D]
  */scale                              *.weight
  trunk/interval_table, noise_table    trunk.interval_table.weight, trunk.noise_table.weight (embeddings)
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.config import ConfigError

STACKED = 'trunk/trunk/blocks/'
EMBEDDINGS = ('trunk/interval_table', 'trunk/noise_table')


def to_state_dict(params: Any, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert JAX parameters to arrays for `load_state_dict`.

    Args:
      params: unboxed {'trunk', 'head'}, as `MaskedDiffusion.init` makes them.
      expected: name -> anything with a shape, as in the state dict of the model that will load them.

    Raises:
      ConfigError: a key is missing, unexpected or of another shape; names them all.
    """
    state = {}
    for path, value in flatten_dict(params, sep='/').items():
        value = np.asarray(jax.device_get(value))
        layers = len(value) if path.startswith(STACKED) else 1
        for name, layer in zip(_names(path, layers), value if path.startswith(STACKED) else [value]):
            state[name] = np.ascontiguousarray(_to_torch(path, layer))
    _account('state dict', state, expected)
    return state


def from_state_dict(state: Mapping[str, Any], expected: Any) -> Any:
    """Convert a state dict of the PyTorch reference (CPU tensors or arrays) to JAX parameters: the inverse.

    Args:
      state: name -> value.
      expected: parameters, or their shapes (`jax.eval_shape` of `init`, unboxed), of the model to fill.

    Raises:
      ConfigError: a key is missing, unexpected or of another shape; names them all.
    """
    shapes = flatten_dict(expected, sep='/')
    names = {path: _names(path, leaf.shape[0]) for path, leaf in shapes.items()}
    _account('state dict', dict.fromkeys(state), dict.fromkeys(name for group in names.values() for name in group))
    params = {}
    for path, group in names.items():
        layers = [_from_torch(path, np.asarray(state[name])) for name in group]
        params[path] = np.stack(layers) if path.startswith(STACKED) else layers[0]
    _account('parameters', params, shapes)
    return unflatten_dict(params, sep='/')


def _names(path: str, layers: int) -> list[str]:
    """Yield the PyTorch name for each layer of a JAX path.

    For example trunk/trunk/blocks/spatial_mlp/up/kernel becomes trunk.blocks.0.spatial_mlp.up.weight and so on.
    """
    path = f'{path}/weight' if path in EMBEDDINGS else re.sub(r'/(kernel|scale)$', '/weight', path)
    path = re.sub(r'/block_(\d+)/', r'/blocks/\1/', path)
    if not path.startswith(STACKED):
        return [path.replace('/', '.')]
    rest = path.removeprefix(STACKED).replace('/', '.')
    return [f'trunk.blocks.{layer}.{rest}' for layer in range(layers)]


def _to_torch(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith('qkv/kernel'):
        return rearrange(value, 'd three e -> (three e) d')
    if path.endswith('qkv/bias'):
        return rearrange(value, 'three e -> (three e)')
    return value.T if path.endswith('kernel') else value


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith('qkv/kernel'):
        return rearrange(value, '(three e) d -> d three e', three=3)
    if path.endswith('qkv/bias'):
        return rearrange(value, '(three e) -> three e', three=3)
    return value.T if path.endswith('kernel') else value


def _account(what: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare keys, and shapes where both sides have them; raise one line that names every difference."""
    faults = [f'missing {name}' for name in expected if name not in given]
    faults += [f'unexpected {name}' for name in given if name not in expected]
    for name in given.keys() & expected.keys():
        if expected[name] is not None and given[name].shape != tuple(expected[name].shape):
            faults.append(f'{name} is {list(given[name].shape)}, not {list(expected[name].shape)}')
    if faults:
        raise ConfigError(f'{what} of another model: {"; ".join(sorted(faults))}')
