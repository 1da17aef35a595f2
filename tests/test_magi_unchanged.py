"""MAGI restores, trains and samples as before there were other systems (tests/fixtures/make_magi.py)."""

import json
import pathlib

import numpy as np
import pytest

from tests.magi_values import measure

RUNS = json.loads(pathlib.Path(__file__).with_name('fixtures').joinpath('magi.json').read_text())


@pytest.mark.parametrize('name', RUNS)
def test_old_runs_give_their_old_values(name, tmp_path):
    """Values are equal bit for bit on one type of CPU; others round differently, so a little room is left."""
    run = RUNS[name]
    assert 'system' not in run['config']
    before, now = run['values'], measure(tmp_path / 'run', run)
    assert now['loss'] == pytest.approx(before['loss'], rel=1e-5)
    assert now['losses'] == pytest.approx(before['losses'], rel=1e-4)
    videos = np.asarray(now['video']), np.asarray(before['video'])
    assert np.ptp(videos[1]) > 100, 'a constant video would show nothing'
    assert np.abs(videos[0] - videos[1]).max() <= 1
