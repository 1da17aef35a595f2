"""Several hosts as several real processes: the same numbers as one, stopped and killed at random, resumed on others."""

import shutil

import numpy as np
import pytest

from magi_jax.training.metrics import read_metrics
from tests.launch.commands import assert_one_line, module, run, train_command, with_devices
from tests.launch.forked import run_forked
from tests.launch.pairs import finish, rounds, start_pair, steps_saved

STEPS, SAVED = 20, 10
SCHEDULE = ('--config.train.log_every=1', f'--config.train.steps={STEPS}', f'--config.train.checkpoint_every={SAVED}')
DIVIDED = '--config.mesh.fsdp=2'


def _losses(workdir):
    return read_metrics(str(workdir))['train/loss']


@pytest.fixture(scope='module')
def command(videos):
    return lambda workdir, *more: train_command(workdir, videos, '--config.data.batch_size=8', *SCHEDULE, *more)


@pytest.fixture(scope='module')
def eight(tmp_path_factory, environment, command):
    """A run of one process on 8 devices, data 4 x fsdp 2, with checkpoints of steps 10 and 20."""
    workdir = tmp_path_factory.mktemp('eight')
    result = run(command(workdir, DIVIDED), with_devices(environment, 8))
    assert result.returncode == 0 and steps_saved(workdir) == [SAVED, STEPS], result.stderr
    return workdir


def _assert_same_losses(workdir, reference):
    ours, theirs = _losses(workdir), _losses(reference)
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=1e-6)
    assert len(set(theirs.values())) == STEPS


def test_two_processes_train_as_one(tmp_path, environment, command, eight):
    statuses, said = finish(start_pair(command(tmp_path, DIVIDED), environment, 4))
    assert statuses == [0, 0], said
    _assert_same_losses(tmp_path, eight)
    assert 'train step on 8 cpu' in said[0][0] and 'train step' not in said[1][0]  # only the first one speaks
    assert said[1][1] == ''
    validation = [read_metrics(str(folder))['validation/loss'][STEPS] for folder in (tmp_path, eight)]
    assert abs(validation[0] - validation[1]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('processes, devices', [(1, 2), (1, 1), (2, 1)])
def test_other_devices_and_processes_go_on(tmp_path, environment, command, eight, processes, devices):
    workdir = tmp_path / 'moved'
    shutil.copytree(eight, workdir)
    shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
    if processes == 1:
        result = run(command(workdir), with_devices(environment, devices))
        status, out = [result.returncode, 0], result.stdout
    else:
        preview = '--config.train.sample_every=20'
        status, ((out, _), _) = finish(start_pair(command(workdir, preview), environment, devices))
    assert status == [0, 0] and f'resuming from the checkpoint of step {SAVED} ' in out
    _assert_same_losses(workdir, eight)


@pytest.mark.slow
def test_a_pair_survives_a_kill_a_sigterm_and_a_kill_in_a_save(tmp_path, environment, command):
    """At random times: whoever is struck, the other ends within two minutes, and nothing saved is lost."""
    often = ('--config.train.steps=60', '--config.train.checkpoint_every=4')
    said = list(rounds(3, command(tmp_path, *often), environment, tmp_path, seed=None))
    assert len(said) == 4
    assert list(_losses(tmp_path)) == list(range(1, 61))


@pytest.mark.slow
def test_a_pair_samples_the_videos_of_one(tmp_path, environment, eight):
    made = []
    for name, processes in (('one', 1), ('two', 2)):
        out = tmp_path / name
        command = [*module('launch.sample'), '--workdir', str(eight), '--out', str(out), '--frames', '3', '--num', '3']
        if processes == 1:
            assert run(command, environment).returncode == 0
        else:
            statuses, said = finish(start_pair(command, environment, 1))
            assert statuses == [0, 0] and said[1][0].count('videos of') == 0, said
        made.append(np.load(out / 'videos.npz')['videos'])
    assert made[0].shape == (3, 3, 32, 32, 3)
    np.testing.assert_allclose(made[0].astype(int), made[1], atol=1)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['model.width=3'], ["'model.width=3' is not a flag", '--config.FIELD=VALUE']),
        (['--processes', '2'], ['--coordinator HOST:PORT, --processes and --process belong together']),
        (
            ['--coordinator', 'a:1', '--processes', '2', '--process', '2'],
            ['--process 2 is out of range: choose 0 to 1'],
        ),
        (
            ['--coordinator', 'localhost:1', '--processes', '2', '--process', '1', '--start_timeout', '2'],
            ['process 0 does not answer at localhost:1', '--start_timeout'],
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, environment, command, arguments, words):
    assert_one_line(run_forked(command(tmp_path, *arguments), environment), *words)
