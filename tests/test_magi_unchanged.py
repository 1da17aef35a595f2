"""MAGI restores, trains and samples as before there were other systems (tests/fixtures/make_magi.py)."""

import json
import pathlib

import numpy as np
import pytest

from tests.magi_values import measure

RUNS = json.loads(pathlib.Path(__file__).with_name('fixtures').joinpath('magi.json').read_text())


# Bit for bit on one type of CPU. Others round differently: steps and denoising steps enlarge that a little.
TOLERANCES = {'loss': {'rtol': 1e-5}, 'losses': {'rtol': 1e-4}, 'video': {'rtol': 0, 'atol': 1}}


@pytest.mark.parametrize('name', RUNS)
def test_old_runs_give_their_old_values(name, tmp_path):
    run = RUNS[name]
    assert 'system' not in run['config'] and run['values'].keys() == set(run['measures'])
    now = measure(tmp_path / 'run', run)
    for measured, before in run['values'].items():
        np.testing.assert_allclose(now[measured], before, **TOLERANCES[measured], err_msg=measured)


def test_the_values_could_show_a_change():
    """Training moves, and neither video nor its frames are alike."""
    losses, (video, other) = (np.asarray(RUNS['complete']['values'][name]) for name in ('losses', 'video'))
    assert losses[-1] < 0.7 * losses[0]
    assert np.abs(video - other).mean() > 10 and (np.abs(np.diff(video, axis=0)).mean((1, 2, 3)) > 10).all()
