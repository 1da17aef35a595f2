"""Maps logical axis names of parameters to mesh axes. Models name their axes; only this table knows the mesh."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from magi_jax.config import ConfigError

STACKED = 'layers'  # parameters of the scanned blocks, [L, ...]
DATA = 'data'  # mesh axis along which parameters are replicated
RULES = (
    # Width of the residual stream and of the diffusion head: parameters and optimizer state are sharded along it.
    ('embed', ('fsdp', 'sequence')),
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    (STACKED, None),
    ('norm', None),
    ('token', None),
    ('timestep', None),
    ('text', None),
)


def parameter_specs(mesh: Mesh, boxed: Any) -> Any:
    """Return a PartitionSpec for each leaf of abstract boxed parameters (`jax.eval_shape(init)`)."""
    return jax.tree.map(lambda sharding: sharding.spec, parameter_shardings(mesh, boxed))


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Return a NamedSharding for each leaf of abstract boxed parameters (`jax.eval_shape(init)`).

    Raises:
      ConfigError: a parameter axis is not divisible by its mesh axes.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    jax.tree_util.tree_map_with_path(_check_divisible, nn.unbox(boxed), shardings)
    return shardings


def optimizer_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Return the shardings of Adam moments and EMA parameters: as `parameter_shardings`, and over `data` as well.

    No micro-batch reads them, and without it every replica along `data` would store the same values (ZeRO, Rajbhandari
    et al. 2020). The first axis that is divisible is sharded. A leaf without one is sharded as its parameter.

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
