"""Starts and ends a run of several processes: how they connect, and how each exits when another one is lost.

A TPU slice needs no flags: start the same command on every host. On other machines, give every process the coordinator
and its number. For example with two processes:

    python -m launch.train ... --coordinator 10.0.0.1:8476 --processes 2 --process 0
    python -m launch.train ... --coordinator 10.0.0.1:8476 --processes 2 --process 1
"""

import contextlib
import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator

import jax
from absl import flags

from magi_jax.config import ConfigError

from . import console

COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0, with any free port (or JAX_COORDINATOR_ADDRESS); not needed on TPU slices',
)
PROCESSES = flags.DEFINE_integer('processes', None, 'number of processes (or JAX_NUM_PROCESSES)', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'index of this process, from 0 (or JAX_PROCESS_ID)', lower_bound=0)
START_TIMEOUT = flags.DEFINE_integer(
    'start_timeout', 100, 'seconds to wait until all processes have started', lower_bound=1
)

# A process without a heartbeat for this long counts as lost, and all other processes exit.
HEARTBEAT_SECONDS = 60
# The other processes wait this long while the first one writes files. A lost process is detected by its heartbeat.
SHUTDOWN_SECONDS = 3600
TPU_FILES = ('/dev/accel0', '/dev/vfio/0')
# Words in jax errors, of any type, that mean: a collective or the coordinator waits for a process that is lost.
LOST_HOST_MARKERS = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED', 'coordination service')
LOST_HOST_MESSAGE = 'another process of this run ended or a link is down ({}): run the same command again on all hosts'


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Connect the processes of a run, and disconnect together at the end. After an error exit at once, without waiting.

    Raises:
      ConfigError: the flags are incomplete, or not all processes connected in time.
    """
    if not _initialize():
        yield
        return
    try:
        yield
        jax.distributed.shutdown()
    except Exception as error:  # noqa: BLE001, after any error a normal exit would wait for the other processes
        _exit_after_error(error)


def _initialize() -> bool:
    """Initialize jax.distributed if this process belongs to a run of several; return True if it does."""
    settings = _named_processes()
    if settings is None and not _on_tpu():
        return False
    # The training loop itself makes all processes stop at the same step after a signal.
    jax.config.update('jax_enable_preemption_service', False)
    faulthandler.disable()  # the message of jax is enough when it ends this process; stacks would hide it
    timeouts = {
        'initialization_timeout': START_TIMEOUT.value,
        'heartbeat_timeout_seconds': HEARTBEAT_SECONDS,
        'shutdown_timeout_seconds': SHUTDOWN_SECONDS,
    }
    try:
        if settings is None:
            jax.distributed.initialize(**timeouts)
        else:
            if settings[2] > 0:
                _await_coordinator(settings[0])
            jax.distributed.initialize(*settings, cluster_detection_method='deactivate', **timeouts)
    except ValueError:
        if settings is None:  # a single TPU host, not a slice
            return False
        raise
    return jax.process_count() > 1


def _await_coordinator(address: str) -> None:
    """Wait until process 0 listens. Without this check jax aborts with an unhelpful message."""
    host, _, port = address.rpartition(':')
    deadline = time.monotonic() + START_TIMEOUT.value
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f'process 0 does not answer at {address} ({error}): start all processes with the same'
                    ' --coordinator, or raise --start_timeout'
                ) from error
        time.sleep(0.2)


def _named_processes() -> tuple[str, int, int] | None:
    """Return (coordinator address, number of processes, number of this process) from flags and environment.

    Return None if they are not set, or if there is only one process.
    """
    flag_values = COORDINATOR.value, PROCESSES.value, PROCESS.value
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
    address, *numbers = (os.environ.get(name) if flag is None else flag for flag, name in zip(flag_values, names))
    if address is None and numbers == [None, None]:
        return None
    if address is None or None in numbers or ':' not in address or not all(str(n).isdecimal() for n in numbers):
        raise ConfigError('--coordinator HOST:PORT, --processes and --process belong together: give all three')
    processes, process = map(int, numbers)
    if process >= processes:
        raise ConfigError(f'--process {process} is out of range: choose 0 to {processes - 1}')
    return None if processes == 1 else (address, processes, process)


def _on_tpu() -> bool:
    platforms = os.environ.get('JAX_PLATFORMS', '')
    return any(map(os.path.exists, TPU_FILES)) and (not platforms or 'tpu' in platforms)


def _exit_after_error(error: Exception) -> None:
    """Print the error and exit the process at once.

    A normal exit would wait for other processes and for unfinished saves.
    """
    try:
        if any(marker in str(error) for marker in LOST_HOST_MARKERS):
            error = ConnectionError(LOST_HOST_MESSAGE.format(console.last_line(error)[:200]))
        status = console.report(error)
    except Exception:  # noqa: BLE001, an unexpected error is a bug and keeps its traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
