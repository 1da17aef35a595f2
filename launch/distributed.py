"""Several processes as one run: how they find each other, and how each ends when another is lost.

A TPU slice needs nothing: the same command on every host. Elsewhere every process is told of the others, e.g. two:

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
    'coordinator', None, 'HOST:PORT of process 0, any free port (or JAX_COORDINATOR_ADDRESS); not needed on TPU slices'
)
PROCESSES = flags.DEFINE_integer('processes', None, 'how many there are (or JAX_NUM_PROCESSES)', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'number of this one, from 0 (or JAX_PROCESS_ID)', lower_bound=0)
START_TIMEOUT = flags.DEFINE_integer('start_timeout', 100, 'seconds to wait for the other processes', lower_bound=1)

# A process that sends no heartbeat for so long is lost, and takes the others with it.
HEARTBEAT_SECONDS = 60
# Others wait while the first writes its files; one that is lost meanwhile is noticed by its heartbeat.
SHUTDOWN_SECONDS = 3600
TPU_FILES = ('/dev/accel0', '/dev/vfio/0')
# In an error of jax, which may be of any type: a collective or the coordinator waits for someone who is not there.
LOST_HOST_MARKERS = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED', 'coordination service')
LOST_HOST_MESSAGE = 'another process of this run ended or a link is down ({}): run the same command again on all hosts'


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Joins the processes, then leaves together with them; after an error, at once and alone.

    Raises:
      ConfigError: the flags do not say who the processes are, or not all of them came in time.
    """
    if not _initialize():
        yield
        return
    try:
        yield
        jax.distributed.shutdown()
    except Exception as error:  # noqa: BLE001, whatever it is, a normal exit would wait for the other processes
        _exit_after_error(error)


def _initialize() -> bool:
    """Whether this process is one of several."""
    who = _named_processes()
    if who is None and not _on_tpu():
        return False
    # A signal stops all processes through the training loop's own agreement.
    jax.config.update('jax_enable_preemption_service', False)
    faulthandler.disable()  # what jax says when it ends this process needs no stacks of it
    times = {
        'initialization_timeout': START_TIMEOUT.value,
        'heartbeat_timeout_seconds': HEARTBEAT_SECONDS,
        'shutdown_timeout_seconds': SHUTDOWN_SECONDS,
    }
    try:
        if who is None:
            jax.distributed.initialize(**times)
        else:
            if who[2] > 0:
                _await_coordinator(who[0])
            jax.distributed.initialize(*who, cluster_detection_method='deactivate', **times)
    except ValueError:
        if who is None:  # no slice: a single TPU host
            return False
        raise
    return jax.process_count() > 1


def _await_coordinator(address: str) -> None:
    """Returns once process 0 listens: jax itself would abort without a word that helps."""
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
    """(coordinator, processes, process) of flags and environment; None: not given, or a single one."""
    given = COORDINATOR.value, PROCESSES.value, PROCESS.value
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
    address, *numbers = (os.environ.get(name) if flag is None else flag for flag, name in zip(given, names))
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
    """Says what happened and ends the process, without the waiting for others and for unfinished saves of an exit."""
    try:
        if any(sign in str(error) for sign in LOST_HOST_MARKERS):
            error = ConnectionError(LOST_HOST_MESSAGE.format(console.last_line(error)[:200]))
        status = console.report(error)
    except Exception:  # noqa: BLE001, a bug, which keeps its traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
