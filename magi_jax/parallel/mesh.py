"""The device mesh with axes `data, fsdp, sequence, tensor`, from one CPU to a pod, and batches on it."""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from magi_jax.config import ConfigError, MeshConfig

AXES = ('data', 'fsdp', 'sequence', 'tensor')
BATCH_AXES = ('data', 'fsdp')


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Make a mesh over `devices` (default: all) that follows the physical torus, if there is one.

    Raises:
      ConfigError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.sequence, config.tensor]
    if sizes.count(-1) == 1:
        rest = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = len(devices) // rest
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            f'mesh.data = {config.data}, mesh.fsdp = {config.fsdp}, mesh.sequence = {config.sequence} and'
            f' mesh.tensor = {config.tensor} do not lay out {len(devices)} devices: leave one of them at -1'
        )
    try:
        laid_out = mesh_utils.create_device_mesh(sizes, devices)
    except NotImplementedError:  # no set of torus axes has the size of a mesh axis
        laid_out = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches: clips over `data` and `fsdp`, other axes unsharded."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, micro_batches: int) -> None:
    """Raise ConfigError unless every device gets the same number of clips in every micro-batch."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size % (shards * micro_batches):
        raise ConfigError(
            f'data.batch_size = {batch_size} cannot be divided over mesh.data x mesh.fsdp = {shards} shards'
            f' and optim.accumulate = {micro_batches} micro-batches: choose a multiple of {shards * micro_batches}'
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Make global arrays, sharded over the batch axes, from the rows of this host."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
