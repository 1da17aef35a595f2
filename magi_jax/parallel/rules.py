"""Logical axis names of parameters -> mesh axes. Models name their axes; only this table knows the mesh."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from magi_jax.config import ConfigError

STACKED = 'layers'  # parameters of the scanned blocks, [L, ...]
DATA = 'data'  # mesh axis along which parameters are copied
RULES = (
    # Width of the residual stream and of the diffusion head: parameters and optimizer state are cut along it.
    ('embed', ('fsdp', 'sequence')),
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    (STACKED, None),
    ('norm', None),
    ('token', None),
    ('timestep', None),
)


def parameter_specs(mesh: Mesh, boxed: Any) -> Any:
    """Abstract boxed parameters (of `jax.eval_shape(init)`) -> a PartitionSpec for each unboxed leaf."""
    return jax.tree.map(lambda sharding: sharding.spec, parameter_shardings(mesh, boxed))


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Abstract boxed parameters (of `jax.eval_shape(init)`) -> a NamedSharding for each unboxed leaf.

    Raises:
      ConfigError: an axis is not divisible by the mesh axes it is laid on; the message names the parameter.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    jax.tree_util.tree_map_with_path(_check_divisible, nn.unbox(boxed), shardings)
    return shardings


def moment_shardings(mesh: Mesh, boxed: Any) -> Any:
    """As `parameter_shardings`, for the optimizer's moments and the average of parameters: cut over `data` as well.

    No micro-batch reads them, and every copy of a parameter along `data` would else keep the same (ZeRO, Rajbhandari
    et al. 2020). Cut is the first axis that divides, the blocks' if it does; else a leaf lies as its parameter.

    Raises:
      ConfigError: as `parameter_shardings`.
    """

    def cut(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        spec = [*sharding.spec] + [None] * (leaf.ndim - len(sharding.spec))
        for axis, size in enumerate(sharding.shard_shape(leaf.shape)):
            if mesh.shape[DATA] > 1 and size % mesh.shape[DATA] == 0:
                over = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
                spec[axis] = (*(name for name in over if name), DATA)
                return NamedSharding(mesh, PartitionSpec(*spec))
        return sharding

    return jax.tree.map(cut, nn.unbox(boxed), parameter_shardings(mesh, boxed))


def _check_divisible(path: Any, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    for size, axes in zip(leaf.shape, sharding.spec, strict=False):
        axes = axes if isinstance(axes, tuple) else (axes,)
        parts = math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)
        if size % parts:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise ConfigError(
                f'{name} {leaf.shape} cannot be divided over {" x ".join(f"mesh.{axis}" for axis in axes)} = {parts}:'
                f' choose a divisor of {size}'
            )
