"""Runs collectives on a mesh, checks their results and measures their bandwidth.

Dimension key: n devices along the axis, L values of a buffer, m = L/n values of the shard of a device.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from magi_jax.config import ConfigError

PERIOD = 97  # period of the values along a buffer; small, so that every sum is exact in float32
BUFFER_BYTES, CPU_BUFFER_BYTES = 2**26, 2**18
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective along one mesh axis.

    Attributes:
      run: (values of this device, axis name) -> values of this device after the collective.
      expected: (position of this device, n, L) -> expected values, float32.
      starts_sharded: True if a device starts with m values instead of L.
      traffic: number of times that L values cross the links of a device, before the factor (n-1)/n.
    """

    run: Callable[[jax.Array, str], jax.Array]
    expected: Callable[[jax.Array, int, int], jax.Array]
    starts_sharded: bool = False
    traffic: int = 1


def check_axis(mesh: Mesh, axis: str) -> dict[str, float]:
    """Run every collective of training along a mesh axis; return the bytes per second that each device sent.

    Raises:
      ConfigError: a device received wrong values; the message names the collective.
    """
    n = mesh.shape[axis]
    size = CPU_BUFFER_BYTES if mesh.devices.flat[0].platform == 'cpu' else BUFFER_BYTES
    length = size // 4 // n * n
    return {name: _run_collective(mesh, axis, name, collective, length) for name, collective in COLLECTIVES.items()}


def _run_collective(mesh: Mesh, axis: str, name: str, collective: Collective, length: int) -> float:
    """Return the bytes per second that each device sent in the fastest of several runs of a collective."""
    n = mesh.shape[axis]
    start = length // n if collective.starts_sharded else length
    values = _per_device(mesh, axis, lambda k: _input_values(k, jnp.arange(start)))()
    run = _per_device(mesh, axis, lambda x: collective.run(x, axis), takes_values=True)
    result = jax.block_until_ready(run(values))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(run(values))
        seconds.append(time.perf_counter() - started)
    expected = _per_device(mesh, axis, lambda k: collective.expected(k, n, length))()
    pairs = zip(result.addressable_shards, expected.addressable_shards)
    if wrong := [str(actual.device) for actual, correct in pairs if not np.array_equal(actual.data, correct.data)]:
        raise ConfigError(
            f'{name} along mesh.{axis} gave wrong values on {", ".join(wrong)}: replace the host of these devices'
        )
    return collective.traffic * length * 4 * (n - 1) / n / min(seconds)


def _per_device(
    mesh: Mesh, axis: str, function: Callable[[jax.Array], jax.Array], takes_values: bool = False
) -> Callable[..., jax.Array]:
    """Return `function` applied on each device to its values, or to its position along the axis."""
    spec = PartitionSpec(axis)
    if takes_values:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    positioned = jax.shard_map(
        lambda: function(jax.lax.axis_index(axis)), mesh=mesh, in_specs=(), out_specs=spec, check_vma=False
    )
    return jax.jit(positioned)


def _input_values(k: jax.Array | int, positions: jax.Array) -> jax.Array:
    """Return the float32 values that device k holds at the given positions of a buffer."""
    return (k + positions % PERIOD).astype(jnp.float32)


def _summed_values(n: int, positions: jax.Array) -> jax.Array:
    """Return the sum of `_input_values` over all n devices, float32."""
    return (n * (n - 1) // 2 + n * (positions % PERIOD)).astype(jnp.float32)


def _shard_positions(k: jax.Array, n: int, length: int) -> jax.Array:
    """Return the positions of the shard of device k in the buffer: int32 [m]."""
    return k * (length // n) + jnp.arange(length // n)


def _gathered_values(_: jax.Array, n: int, length: int) -> jax.Array:
    """Return the values of every device after an all-gather: the shards of all devices in order."""
    positions = jnp.arange(length)
    return _input_values(positions // (length // n), positions % (length // n))


def _exchanged_values(k: jax.Array, n: int, length: int) -> jax.Array:
    """Return the values of device k after an all-to-all: part k of the buffer of each device."""
    return _input_values(jnp.arange(length) // (length // n), k * (length // n) + jnp.arange(length) % (length // n))


COLLECTIVES = {
    'all-reduce': Collective(jax.lax.psum, lambda k, n, length: _summed_values(n, jnp.arange(length)), traffic=2),
    'all-gather': Collective(
        lambda x, axis: jax.lax.all_gather(x, axis, tiled=True), _gathered_values, starts_sharded=True
    ),
    'reduce-scatter': Collective(
        lambda x, axis: jax.lax.psum_scatter(x, axis, tiled=True),
        lambda k, n, length: _summed_values(n, _shard_positions(k, n, length)),
    ),
    'all-to-all': Collective(lambda x, axis: jax.lax.all_to_all(x, axis, 0, 0, tiled=True), _exchanged_values),
}
