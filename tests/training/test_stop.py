"""Signals are remembered while the loop runs, and given back to their former handlers afterwards."""

import os
import signal

import jax
import pytest

from magi_jax.config import MeshConfig
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.stop import StopSignals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered(number):
    before = signal.getsignal(number)
    with StopSignals(make_mesh(MeshConfig())) as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.requested()
    assert signal.getsignal(number) == before


def test_among_many_hosts_the_answer_is_that_of_the_call_before(monkeypatch):
    """So that no device waits for it; the first answer is its own."""
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with StopSignals(make_mesh(MeshConfig())) as stop:
        assert not stop.requested() and not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested() and stop.requested() and stop.requested()
    with StopSignals(make_mesh(MeshConfig())) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
