"""Stop signals: SIGTERM or SIGINT on any one host stops all of them after the same step."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class StopSignals:
    """SIGTERM and SIGINT are remembered instead of ending the process, so that the loop can save first.

    Among many hosts a reduction of one number follows every step; its result is looked at one step later, so that no
    device ever waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._asked = False
        self._before = {}
        self._result = None
        self._devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._agree)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop now: the same answer on all hosts at the n-th call, at most one call late."""
        if jax.process_count() == 1:
            return self._asked
        flags = np.full(len(self._devices.addressable_devices), self._asked, np.int32)
        previous, self._result = self._result, self._any(jax.make_array_from_process_local_data(self._devices, flags))
        return bool(self._result if previous is None else previous)

    def _agree(self, *_: object) -> None:
        self._asked = True
