"""A study makes every run once, goes on where it was stopped, and ends with its table."""

import json

import pytest

from configs.study_strategies import RUNLOCAL_PLAN
from launch import study_runs
from tests.launch.commands import ROOT, module, run

CONFIG = f'{ROOT / "configs/study_strategies.py"}:runlocal'


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Instead of running commands: which ones, and what the evaluations would leave behind."""
    made = []

    def execute(root, name, *arguments):
        made.append((name, *arguments))
        given = dict(argument[2:].split('=', 1) for argument in arguments)
        if name == 'launch.evaluate':
            seed = int(given['workdir'][-1])
            out = tmp_path / given['out']
            out.mkdir(parents=True)
            spread = {'mean': 3.0 + seed, 'floor': 1.0}
            curve = {str(frame): spread for frame in (16, 32, 48, 64, 80, 96, 112, 128)}
            result = {'protocol': given['protocol'], 'frechet': spread, 'curve': curve, 'stills': curve}
            (out / 'metrics.json').write_text(json.dumps(result))
            (out / 'report.html').touch()
        (root / study_runs.COSTS).open('a').write('{"cpu_seconds": 1800.0}\n')

    monkeypatch.setattr(study_runs, 'execute', execute)
    return made


def _study(workdir):
    study_runs.run_all(RUNLOCAL_PLAN, 'configs/study_strategies.py', 'runlocal', workdir)


def test_every_run_is_trained_and_measured_once(commands, tmp_path):
    _study(tmp_path)
    trained = [command for command in commands if command[0] == 'launch.train']
    assert len(trained) == 4 and trained[0][1].endswith('quickstart_autoencoder.py:runlocal')
    assert [command[3] for command in trained[1:]] == ['--config.seed=0', '--config.seed=1', '--config.seed=0']
    assert trained[3][1].endswith('study_strategies.py:masked,no_noise,runlocal')
    assert len(commands) == 4 + 3 * 2
    assert '| CTF, intervals, noise | 2 | 3.5 ± 0.7 |' in (tmp_path / 'study.md').read_text()
    facts = json.loads((tmp_path / 'study.json').read_text())['facts']
    assert facts == {'runs': '3', 'processor time': '5.0 core hours'}
    del commands[:]
    _study(tmp_path)
    assert {command[0] for command in commands} == {'launch.train'}  # each of which knows that it is finished


def test_exit_status_and_time_of_a_command(tmp_path):
    study_runs.execute(tmp_path, 'json.tool', '--help')
    with pytest.raises(study_runs.CommandFailed, match='1'):
        study_runs.execute(tmp_path, 'no_such_module')
    assert [json.loads(line)['status'] for line in (tmp_path / study_runs.COSTS).read_text().splitlines()] == [0, 1]


def test_a_signal_to_the_study_ends_its_command_with_it(tmp_path):
    (tmp_path / 'waits.py').write_text('import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(study_runs.CommandFailed, match='143'):
        patch.setenv('PYTHONPATH', str(tmp_path))
        study_runs.execute(tmp_path, 'waits')


@pytest.mark.slow
def test_a_small_study_from_nothing_to_its_page(environment, tmp_path):
    result = run([*module('launch.study'), f'--config={CONFIG}', f'--workdir={tmp_path}'], environment)
    assert result.returncode == 0, result.stderr
    assert 'MTF, intervals' in (tmp_path / 'study.md').read_text() and (tmp_path / 'study.html').stat().st_size > 10_000
