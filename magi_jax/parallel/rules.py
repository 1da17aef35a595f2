"""Logical axis names of parameters -> mesh axes. Models name their axes; only this table knows the mesh."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from magi_jax.config import ConfigError

RULES = (
    ('embed', 'fsdp'),  # the width of the residual stream, and of the diffusion head
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    ('layers', None),
    ('norm', None),
    ('token', None),
    ('timestep', None),
)


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Abstract boxed parameters (of `jax.eval_shape(init)`) -> a NamedSharding for each unboxed leaf.

    Raises:
      ConfigError: an axis is not divisible by the mesh axis it is laid on; the message names the parameter.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    jax.tree_util.tree_map_with_path(_check_divisible, nn.unbox(boxed), shardings)
    return shardings


def _check_divisible(path: Any, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    for size, axis in zip(leaf.shape, sharding.spec, strict=False):
        if axis is not None and size % sharding.mesh.shape[axis]:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise ConfigError(
                f'{name} {leaf.shape} cannot be divided over mesh.{axis} = {sharding.mesh.shape[axis]}:'
                f' choose a divisor of {size}'
            )
