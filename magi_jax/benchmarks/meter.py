"""Seconds and bytes of a process."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

MATMUL_SIZE = {'cpu': 2048, 'gpu': 8192}
MATMUL_TRIES = 10


def threads() -> int:
    """How many threads a framework is given on a CPU: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def now() -> tuple[float, float]:
    """For `since`."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> dict[str, float]:
    """Seconds since `now()`: 'wall', and 'cpu' of all threads of this process."""
    wall, cpu = started
    return {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu}


def measure(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of `work`, which waits for its results, as in `since`."""
    started = now()
    work()
    return since(started)


def fastest(work: Callable[[], None]) -> dict[str, float]:
    """The shortest seconds of several tries, each clock's own, after one that is not counted."""
    work()
    tries = [measure(work) for _ in range(MATMUL_TRIES)]
    return {clock: min(seconds[clock] for seconds in tries) for clock in tries[0]}


def forget_peak() -> None:
    """From here on `peak_resident_bytes` counts anew (Linux)."""
    Path('/proc/self/clear_refs').write_text('5')


def peak_resident_bytes() -> int:
    """The largest resident memory of this process so far; `getrusage` would count its parent's as well."""
    return 1024 * int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
