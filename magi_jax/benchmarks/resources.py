"""Measures time and memory of a process."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

MATMUL_SIZE = {'cpu': 2048, 'gpu': 8192}
MATMUL_TRIES = 10


def threads() -> int:
    """Return the number of CPU threads for a framework: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def now() -> tuple[float, float]:
    """Return the current clocks, for `since`."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> dict[str, float]:
    """Return the seconds since `now()`: 'wall', and 'cpu' of all threads of this process."""
    wall, cpu = started
    return {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu}


def measure(work: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of `work`, which blocks until its results are ready; as in `since`."""
    started = now()
    work()
    return since(started)


def fastest(work: Callable[[], None]) -> dict[str, float]:
    """Return the shortest seconds of several tries, by each clock, after one that does not count."""
    work()
    tries = [measure(work) for _ in range(MATMUL_TRIES)]
    return {clock: min(seconds[clock] for seconds in tries) for clock in tries[0]}


def forget_peak() -> None:
    """Reset the peak of `peak_resident_bytes` (Linux)."""
    Path('/proc/self/clear_refs').write_text('5')


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process. `getrusage` would include that of its parent."""
    return 1024 * int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
