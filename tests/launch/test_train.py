"""launch.train as its user runs it: real processes, real kills, the same bits after a restart."""

import functools
import re
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from magi_jax.training.metrics import read_metrics
from tests.launch.commands import ROOT, assert_one_line, run, train_command
from tests.launch.forked import run_forked
from tests.training.test_metrics import events

STEPS = 40
SCHEDULE = (f'--config.train.steps={STEPS}', '--config.train.checkpoint_every=17', '--config.train.log_every=1')

# Runs a module, and kills its own process as it is about to make this change to the file system.
KILL_AT = """
import os, re, runpy, signal, sys
change, pattern = sys.argv[1:3]
def watch(event, arguments):
    if event == change and re.search(pattern, os.fsdecode(arguments[0])):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


@pytest.fixture(scope='module')
def command(videos):
    return functools.partial(_command, videos)


def _command(videos, workdir, *overrides):
    """With the quickstart's own optimizer, whose state must come back too."""
    return train_command(workdir, videos, '--config.optim.name=muon', *SCHEDULE, *overrides)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, environment, command):
    workdir = tmp_path_factory.mktemp('whole')
    result = run(command(workdir), environment)
    assert result.returncode == 0, result.stderr
    assert _steps(workdir) == [34, STEPS]  # train.keep_checkpoints = 2
    parameters, compiling, *_ = result.stdout.splitlines()
    assert re.fullmatch(r'[\d,]+ parameters in \d+ arrays: --parameters lists them', parameters)
    assert re.search(r'compiling the training step for 1 cpu device\(s\): .* on an idle CPU', compiling)
    return workdir


def _steps(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def _start_and_signal(command, environment, number, condition):
    """Starts a run and sends it `number` as soon as `condition()` holds; returns its exit status and stdout."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'text': True}
    with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as process:
        deadline = time.monotonic() + 300
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, 'the run ended before the signal'
            time.sleep(0.002)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said


def _resumed(step):
    return f'resuming from the checkpoint of step {step} '


def _go_on(command, environment, step):
    """The same command again, which must start at `step`."""
    result = run(command, environment)
    assert result.returncode == 0, result.stderr
    assert _resumed(step) in result.stdout


def _assert_same_run(workdir, reference):
    """The last checkpoints hold the same bits; every step had the same loss, or the same data and draws for short."""
    ours, theirs = (jax.tree_util.tree_leaves_with_path(_state(folder)) for folder in (workdir, reference))
    assert len(ours) == len(theirs) > 50
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    losses = [read_metrics(str(folder))['train/loss'] for folder in (workdir, reference)]
    assert losses[0] == losses[1] and list(losses[0]) == list(range(1, STEPS + 1))


def _state(workdir):
    manager = ocp.CheckpointManager(workdir / 'checkpoints')
    items = ocp.args.Composite(ema=ocp.args.StandardRestore(), training=ocp.args.StandardRestore())
    state = dict(manager.restore(STEPS, args=items))
    manager.close()
    return state


def test_stopped_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, environment, command, uninterrupted):
    metrics, saved = tmp_path / 'metrics.jsonl', tmp_path / 'checkpoints' / '17'
    status, _ = _start_and_signal(
        command(tmp_path), environment, signal.SIGTERM, lambda: metrics.exists() and '"step": 5' in metrics.read_text()
    )
    (stopped,) = _steps(tmp_path)
    assert status == 143 and 5 <= stopped < 17
    status, said = _start_and_signal(command(tmp_path), environment, signal.SIGKILL, saved.exists)
    step = _steps(tmp_path)[-1]
    assert status == -signal.SIGKILL and _resumed(stopped) in said and 17 <= step < STEPS
    _go_on(command(tmp_path), environment, step)
    _assert_same_run(tmp_path, uninterrupted)


def test_kills_in_the_middle_of_saves_cost_only_the_steps_since_the_save_before(
    tmp_path, environment, command, uninterrupted
):
    def killed_at(change, pattern):
        python, _, *arguments = command(tmp_path)
        result = run([python, '-c', KILL_AT, change, pattern, *arguments], environment)
        assert result.returncode == -signal.SIGKILL, result.stderr
        return result.stdout

    killed_at('os.rename', r'checkpoints/17\.[^/]*$')  # written, its name still to be given
    assert _steps(tmp_path) == []
    assert 'going on' not in killed_at('os.mkdir', r'checkpoints/34\..*array_metadatas$')  # half-written
    assert _steps(tmp_path) == [17]
    assert 'step 17 ' in killed_at('os.rename', rf'checkpoints/{STEPS}\.[^/]*$')
    _go_on(command(tmp_path), environment, 34)
    _assert_same_run(tmp_path, uninterrupted)
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['34', '40']  # no leftovers


def test_learning_rate_speed_and_config_are_written(uninterrupted):
    written = read_metrics(str(uninterrupted))
    rates = written['train/learning_rate']
    assert rates[1] == 0 and rates[20] == pytest.approx(5e-3 * 19 / 100)  # in the warm-up, before the decay
    assert all(rate > 0 for rate in written['train/steps_per_second'].values())
    (text,) = [
        v for e in events(uninterrupted) for v in e.summary.value if v.metadata.plugin_data.plugin_name == 'text'
    ]
    assert '"learning_rate": 0.005' in text.tensor.string_val[0].decode()


def test_second_run_of_a_finished_workdir_does_nothing(environment, command, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob('*')}
    result = run(command(uninterrupted), environment)
    assert result.returncode == 0 and 'is complete: 40 steps' in result.stdout
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob('*')} == before


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, environment, command):
    wild = ['learning_rate=1e30', 'warmup_steps=0', 'name=adamw']
    overrides = [f'--config.optim.{field}' for field in wild]
    result = run(command(tmp_path, *overrides, '--config.train.checkpoint_every=1'), environment)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    said = re.search(r'error: step (\d+): loss is not finite, .*: lower optim.learning_rate', result.stderr)
    assert said and _steps(tmp_path)[-1] == int(said[1]) - 1


@pytest.mark.parametrize(
    ('overrides', 'words'),
    [
        (['--config.model.widht=3'], ["'widht'", 'Did you mean "width"']),
        (['--config.model.width=abc'], ['model.width', "'abc'"]),
        (['--config.model.teacher_forcing=compleat'], ["'compleat' is unknown: choose one of 'complete', 'masked'"]),
        (['--config=configs/quickstart.py:fast'], ["no variant ['fast']", 'runlocal']),
        (['--config=configs/nowhere.py'], ['configs/nowhere.py']),
        (['--config.tokenizer.kind=autoencoder_kl', '--config.tokenizer.path=/nowhere'], ['/nowhere']),
        (['--config.data.path=/nowhere'], ["data.path = '/nowhere' is not a folder"]),
        (['--config.mesh.data=3'], ['mesh.data = 3']),
        (
            ['--config.data.batch_size=7', '--config.optim.accumulate=2'],
            ['data.batch_size = 7', 'optim.accumulate = 2'],
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, environment, command, overrides, words):
    assert_one_line(run_forked(command(tmp_path, *overrides), environment), *words)


def test_workdir_of_another_experiment_is_refused(environment, command, uninterrupted):
    result = run_forked(command(uninterrupted, '--config.model.width=32'), environment)
    assert_one_line(result, 'was started with model.width = 16, not 32: use another --workdir')
