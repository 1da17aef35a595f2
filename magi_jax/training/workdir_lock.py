"""One run in one work folder: a second process that would train there is refused."""

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
    """Hold the work folder's lock, which the system frees when the process ends, however it ends.

    The first host takes it for all; every host calls this.

    Raises:
      ConfigError: another run holds it, or its path is not UTF-8.
    """
    require_utf8(workdir)
    with contextlib.ExitStack() as stack:
        free = _take(workdir / LOCK, stack) if jax.process_index() == 0 else True
        if not hosts.broadcast_from_first_host(free):
            raise ConfigError(
                f'another process is training in {workdir}: wait until it has ended, or choose another --workdir'
            )
        yield


def _take(path: Path, stack: contextlib.ExitStack) -> bool:
    """Return False if another process holds the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open('a'))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a folder that cannot be written, or a file system without locks: saving tells what is wrong
        return True
    return True
