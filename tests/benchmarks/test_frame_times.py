"""What is timed is what the names say; how long it takes is the machine's matter."""

import numpy as np
import pytest

from configs import quickstart
from magi_jax.benchmarks import frame_times
from magi_jax.config import from_config_dict

LENGTHS = (9, 16)


@pytest.fixture(scope='module')
def config():
    values = quickstart.get_config('runlocal')
    values.data.batch_size = 1
    return from_config_dict(values)


@pytest.mark.slow
def test_every_way_at_every_length(config):
    times = frame_times.measure(config, LENGTHS, repeats=1)
    ways = {frame_times.SLIDING, frame_times.WHOLE, frame_times.ATTENTION, frame_times.UNCACHED}
    assert set(times) == ways
    for course in times.values():
        assert list(course) == list(LENGTHS) and min(course.values()) > 0
    for length in LENGTHS:
        assert times[frame_times.UNCACHED][length] > times[frame_times.WHOLE][LENGTHS[0]]


def test_each_frame_is_timed_once(config, monkeypatch):
    """Seconds are counted by a clock that each call moves on by its own length."""
    calls = []
    now = [0.0]
    monkeypatch.setattr(frame_times.resources.time, 'perf_counter', lambda: now[0])

    class Sampler:
        def next_frame(self, params, state):
            calls.append(state)
            now[0] += float(state)
            return state + 1, state

    seconds = frame_times._each_frame(Sampler(), None, np.float32(1), 5)
    assert seconds == [1, 2, 3, 4] and len(calls) == 5  # one call more, to compile
