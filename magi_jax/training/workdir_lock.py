"""A lock on the work folder: a second process that wants to train in it is refused."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax

from magi_jax.config import ConfigError
from magi_jax.fields import require_utf8
from magi_jax.parallel import hosts

LOCK = '.lock'


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the lock of the work folder; the system frees it when the process ends for any reason.

    Every host calls this. The first host takes the lock for all.

    Raises:
      ConfigError: another run holds the lock, or its path is not UTF-8.
    """
    require_utf8(workdir)
    with contextlib.ExitStack() as stack:
        free = _take(workdir / LOCK, stack) if jax.process_index() == 0 else True
        if not hosts.broadcast_from_first_host(free):
            raise ConfigError(
                f'another process is training in {workdir}: wait until it ends, or choose another --workdir'
            )
        yield


def _take(path: Path, stack: contextlib.ExitStack) -> bool:
    """Take the lock. Return False if another process holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open('a'))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # folder not writable, or a file system without locks: saving reports the error later
        return True
    return True
