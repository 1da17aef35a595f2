"""Rows of one host among many, and arrays that come to all devices and back."""

import jax
import numpy as np
import pytest

from magi_jax.config import MeshConfig
from magi_jax.parallel import hosts
from magi_jax.parallel.mesh import batch_sharding, make_mesh


class _Sharding:
    """Of a host that holds some of 8 devices in a row, each with two rows of 16."""

    def __init__(self, devices):
        self._devices = devices

    def addressable_devices_indices_map(self, shape):
        assert shape == (16,)
        return {number: (slice(2 * number, 2 * number + 2),) for number in self._devices}


@pytest.mark.parametrize(
    ('devices', 'rows'), [([0, 1, 2, 3], range(8)), ([5, 1], [2, 3, 10, 11])], ids=['block', 'torus']
)
def test_rows_of_a_host_are_those_of_its_devices(monkeypatch, devices, rows):
    monkeypatch.setattr(hosts, 'batch_sharding', lambda mesh: _Sharding(devices))
    assert hosts.host_rows(None, 16).tolist() == list(rows)


def test_a_host_alone_holds_all_rows_once():
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    assert hosts.host_rows(mesh, 6).tolist() == list(range(6))
    assert hosts.num_batch_shards(mesh) == 2


def test_rows_are_repeated_until_they_divide():
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert hosts.padded_rows(mesh, 3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert hosts.padded_rows(mesh, 9).tolist() == [*range(9), *range(7)]
    assert hosts.padded_rows(mesh, 8).tolist() == list(range(8))


def test_parts_give_every_shard_as_many_rows():
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    first, last = hosts.equal_batches(mesh, 9, per_shard=3)
    assert first.tolist() == list(range(6)) and last.tolist() == [6, 7, 8, 6, 7, 8]


def test_arrays_come_back_whole():
    mesh = make_mesh(MeshConfig())
    tree = {'a': np.arange(16.0).reshape(8, 2), 'b': np.arange(8)}
    laid = hosts.shard(batch_sharding(mesh), tree)
    assert laid['a'].sharding.shard_shape((8, 2)) == (1, 2)
    for back in (hosts.gather_to_hosts(laid), hosts.gather_to_hosts(hosts.replicate(mesh, tree))):
        jax.tree.map(np.testing.assert_array_equal, back, tree)
