"""Stop signals: SIGTERM or SIGINT on one host stops all hosts after the same step."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class StopSignals:
    """Records SIGTERM and SIGINT instead of ending the process, so that the loop can save first.

    With several hosts, every step is followed by a reduction of one number. Its result is read one step later, so that
    no device waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._received = False
        self._old_handlers = {}
        self._result = None
        self._devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether to stop now.

        All hosts get the same answer at the n-th call, at most one call after the signal.
        """
        if jax.process_count() == 1:
            return self._received
        flags = np.full(len(self._devices.addressable_devices), self._received, np.int32)
        previous, self._result = self._result, self._max(jax.make_array_from_process_local_data(self._devices, flags))
        return bool(self._result if previous is None else previous)

    def _on_signal(self, *_: object) -> None:
        self._received = True
