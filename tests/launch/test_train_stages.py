"""launch.train through the stages of a config, as its user runs it: real steps, a real kill, the same bits."""

import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.launch.commands import ROOT, assert_one_line, module, run
from tests.launch.forked import run_forked
from tests.training.staged import FILE, STEPS, write_videos


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('staged')
    path = folder / 'staged.py'
    path.write_text(FILE.format(videos=str(write_videos(folder))))
    return str(path)


def _command(config, workdir, *overrides):
    return [*module('launch.train'), '--config', config, '--workdir', str(workdir), *overrides]


def _state(folder):
    items = ocp.args.Composite(ema=ocp.args.StandardRestore(), training=ocp.args.StandardRestore())
    with ocp.CheckpointManager(folder / 'checkpoints') as manager:
        return jax.tree.map(np.asarray, dict(manager.restore(STEPS[1], args=items)))


@pytest.mark.slow
def test_killed_in_stage_two_and_rerun_equals_an_uninterrupted_run(tmp_path, environment, config):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finished = run(_command(config, whole), environment)
    assert finished.returncode == 0, finished.stderr
    assert f'starting from the weights of step {STEPS[0]} in {whole / "stage_1"}' in finished.stdout

    saved = killed / 'stage_2' / 'checkpoints' / '2'
    pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with subprocess.Popen(_command(config, killed), env=environment, cwd=ROOT, **pipes) as process:
        deadline = time.monotonic() + 500
        while not saved.exists():
            assert process.poll() is None and time.monotonic() < deadline, 'the run ended before the signal'
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (killed / 'stage_2' / 'checkpoints' / str(STEPS[1])).exists()
    resumed = run(_command(config, killed), environment)
    assert resumed.returncode == 0 and f'in {killed / "stage_2"}' in resumed.stdout, resumed.stderr
    assert 'stage 1 of 2' not in resumed.stdout
    jax.tree.map(np.testing.assert_array_equal, _state(killed / 'stage_2'), _state(whole / 'stage_2'))

    out = tmp_path / 'videos'
    command = [*module('launch.sample'), '--workdir', str(whole), '--frames', '4', '--out', str(out)]
    assert run(command, environment).returncode == 0
    assert np.load(out / 'videos.npz')['videos'].shape == (1, 4, 24, 32, 3)


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('--config.stages[1].accumulate=5', ['stage 2: ', 'data.batch_size = 16', 'optim.accumulate = 5']),
        ('--config.stages[1].frmes=5', ["'frmes'", 'fields are steps, frames']),
        ('--config.stages[7].frames=5', ['stages are counted from 0']),
        ('--config.stages=({"frames": "x"},)', ['config.stages[0].frames', 'give a whole number']),
    ],
)
def test_mistakes_are_one_line(tmp_path, environment, config, override, words):
    assert_one_line(run_forked(_command(config, tmp_path, override), environment), *words)


def test_a_stage_that_does_not_exist_cannot_be_compiled(environment, config):
    command = [*module('launch.compile'), '--config', config, '--topology', 'v5e:1x1', '--stage', '3']
    assert_one_line(run_forked(command, environment), 'there is no stage 3, config.stages holds 2: choose 1 to 2')
