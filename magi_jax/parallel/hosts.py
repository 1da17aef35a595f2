"""What differs between one host and many: which rows a host feeds, how arrays come to all hosts and back.

Every function but `host_rows`, `padded_rows` and `equal_parts` must be called by all hosts, in the same order.
B rows of a batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from orbax.checkpoint import multihost

from magi_jax.parallel.mesh import batch_sharding, replicated

MEETING_MS = 24 * 3600 * 1000


def host_rows(mesh: Mesh, count: int) -> np.ndarray:
    """The rows of a global batch of `count` rows that this host's devices hold, ascending: int [B_local].

    Of several hosts along `sequence` or `tensor`, each holds the same rows; on a torus a host's rows may have gaps.
    """
    shards = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[rows] for (rows,) in shards]))


def padded_rows(mesh: Mesh, count: int) -> np.ndarray:
    """0..count-1, then some of them again, until every shard of the batch axes gets the same number: int [B]."""
    shards = count_shards(mesh)
    return np.resize(np.arange(count), -(-count // shards) * shards)


def equal_parts(mesh: Mesh, count: int, each: int) -> list[np.ndarray]:
    """0..count-1 in parts that give each shard of the batch axes `each` of them; rows of the last are repeated.

    What is computed part by part is the same to the last bit on any number of devices: each has the same rows at once.
    """
    size = each * count_shards(mesh)
    return [np.resize(np.arange(start, min(start + size, count)), size) for start in range(0, count, size)]


def count_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return int(np.prod([mesh.shape[axis] for axis in batch_sharding(mesh).spec[0]]))


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every host has alike -> the same, replicated over the devices of all hosts."""
    return on_devices(replicated(mesh), tree)


def on_devices(sharding: Sharding, tree: Any) -> Any:
    """Whole arrays that every host has alike -> global arrays laid out by `sharding`."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), tree)


def whole(tree: Any) -> Any:
    """Global arrays -> NumPy arrays, complete on every host."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def word_of_first(facts: bool | Sequence[bool]) -> np.ndarray:
    """What the first process thinks, where hosts may differ for a moment: what a shared folder holds."""
    facts = np.asarray(facts)
    return facts if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(facts)


def meet(name: str) -> None:
    """Returns once every process has come here, however late; a lost one is an error. `name` is of this place only.

    Over the coordinator, not the devices: a collective gives up after 30 s on CPUs, less than a compilation may take.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=MEETING_MS)
