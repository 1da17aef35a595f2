"""Exchange between hosts: which rows of a batch a host feeds, replication, gathering, broadcasts and barriers.

All hosts must call every function in the same order, except `host_rows`, `padded_rows` and `equal_parts`.
Dimension key: B rows of a batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from orbax.checkpoint import multihost

from magi_jax.parallel.mesh import batch_sharding, replicated_sharding

BARRIER_TIMEOUT_MS = 24 * 3600 * 1000


def host_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Return the rows of a global batch of `count` rows that the devices of this host hold: int [B_local], ascending.

    Hosts that share a batch along `sequence` or `tensor` hold the same rows. On a torus the rows of a host may have
    gaps.
    """
    shards = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[rows] for (rows,) in shards]))


def padded_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Return int [B]: 0..count-1, then repeated rows until every shard of the batch axes has the same number."""
    shards = num_batch_shards(mesh)
    return np.resize(np.arange(count), -(-count // shards) * shards)


def equal_batches(mesh: Mesh, count: int, per_shard: int) -> list[np.ndarray]:
    """Split 0..count-1 into batches with `each` rows for each shard of the batch axes; the last repeats rows.

    Every device then computes on batches of the same size, so results are bit-identical on any number of devices.
    """
    size = per_shard * num_batch_shards(mesh)
    return [np.resize(np.arange(start, min(start + size, count)), size) for start in range(0, count, size)]


def num_batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch."""
    return int(np.prod([mesh.shape[axis] for axis in batch_sharding(mesh).spec[0]]))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Replicate arrays that are equal on every host over the devices of all hosts."""
    return shard(replicated_sharding(mesh), tree)


def shard(sharding: Sharding, tree: Any) -> Any:
    """Shard arrays that are equal on every host: make global arrays with `sharding`."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), tree)


def gather_to_hosts(tree: Any) -> Any:
    """Gather global arrays into NumPy arrays that are complete on every host."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def broadcast_from_first_host(values: bool | Sequence[bool]) -> np.ndarray:
    """Broadcast booleans from the first host.

    Use it for decisions that depend on a shared folder, which hosts may see at different times.
    """
    values = np.asarray(values)
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)


def barrier(name: str) -> None:
    """Block until all hosts reach this barrier; raise if a host is lost. Each barrier needs a unique `name`.

    The barrier uses the coordinator, not the devices: a collective on CPUs times out after 30 s, and compilation can
    take longer.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=BARRIER_TIMEOUT_MS)
