"""launch.preflight: everything passes where a run would work, and each mistake fails with its way out."""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import types

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import get_config
from launch import collectives, console, preflight, preflight_checks
from launch.preflight_checks import CHECKS, Check, PreflightContext
from magi_jax.checkpoint import Checkpoints, save_config
from magi_jax.config import ConfigError, MeshConfig, from_config_dict
from magi_jax.parallel.mesh import make_mesh
from tests.launch.commands import ROOT, module, run, train_command, with_devices

SCHEDULE = ('--config.train.steps=40', '--config.train.checkpoint_every=17', '--config.train.log_every=1')
NAMES = [check.name for check in CHECKS]

# Joins two processes, then runs the command as either of them would.
JOINED = """
import runpy, sys, jax
port, number = sys.argv[1], int(sys.argv[2])
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize('localhost:' + port, num_processes=2, process_id=number)
sys.argv[1:] = sys.argv[3:]
runpy.run_module('launch.preflight', run_name='__main__', alter_sys=True)
"""


def command(workdir, videos, *overrides):
    """Checks the run that test_train.py trains: the step it compiles is one that is compiled there anyway."""
    return [*module('launch.preflight'), *train_command(workdir, videos, *SCHEDULE, *overrides)[3:]]


def report(result):
    """{name of a check: (status, text)} and the last line of what the command said."""
    lines = result.stdout.splitlines()
    found = [re.fullmatch(r'(ok|FAILED|skipped) +(\w+) +(.+)', line) for line in lines[:-1]]
    assert all(found), result.stdout + result.stderr
    return {match[2]: (match[1], match[3]) for match in found}, lines[-1]


@pytest.fixture
def facts(tmp_path):
    config = from_config_dict(get_config('runlocal'))
    config = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=4))
    mesh = make_mesh(config.mesh)
    return PreflightContext(config, tmp_path, ROOT / 'requirements.txt', 'auto', token='now', mesh=mesh)


def run_named(facts, *names):
    """The reports of some checks whose needs are met."""
    chosen = tuple(dataclasses.replace(check, needs=()) for check in CHECKS if check.name in names)
    return {name: (status, text) for status, name, text in preflight.run_checks(chosen, facts, timeout=300)}


def test_all_is_well_with_a_config_that_trains(tmp_path, videos, environment):
    result = run(command(tmp_path / 'run', videos), environment)
    found, last = report(result)
    assert result.returncode == 0 and last == 'ready', result.stdout + result.stderr
    assert list(found) == NAMES and {status for status, _ in found.values()} == {'ok'}
    assert 'mesh data 1' in found['devices'][1] and 'MB/s' in found['checkpoint'][1]
    assert re.search(r'\d+ clips/s', found['data'][1]) and re.search(r'loss \d', found['step'][1])
    assert list((tmp_path / 'run').iterdir()) == []


def test_every_mistake_is_told_in_one_run(tmp_path, videos, environment):
    pins = tmp_path / 'pins.txt'
    pins.write_text('jax==0.0.1  # old\nno-such-package==1\nnumpy>=1; platform_system == "Windows"\n')
    (tmp_path / 'file').touch()
    mistakes = ['--config.mesh.data=3', '--config.tokenizer.kind=autoencoder_kl', '--config.tokenizer.path=/nowhere']
    mistakes += ['--config.data.path=/nowhere', '--requirements', str(pins)]
    result = run(command(tmp_path / 'file' / 'run', videos, *mistakes), environment)
    found, last = report(result)
    assert result.returncode == 1 and last == '5 check(s) failed' and 'Traceback' not in result.stderr
    told = {name: text for name, (status, text) in found.items() if status == 'FAILED'}
    assert told.keys() == {'versions', 'devices', 'workdir', 'tokenizer', 'data'}
    assert 'pinned ==0.0.1; no-such-package is not installed: pip install -r' in told['versions']
    assert 'mesh.data = 3' in told['devices'] and 'leave one of them at -1' in told['devices']
    assert 'cannot be written (Not a directory): choose another --workdir' in told['workdir']
    assert 'no tokenizer in /nowhere' in told['tokenizer'] and "'/nowhere' is not a folder" in told['data']
    assert found['collectives'] == ('skipped', 'needs devices')
    assert found['step'] == ('skipped', 'needs state, data')


@pytest.mark.slow
def test_two_processes_compare_themselves_before_they_work_together(tmp_path, videos, environment):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    environment = with_devices(environment, 2) | {'TF_CPP_MIN_LOG_LEVEL': '2'}
    started = []
    for number in (0, 1):
        own = [f'--config.seed={number}', '--config.mesh.fsdp=4', '--config.mesh.data=1', '--config.data.batch_size=4']
        python, _, _, *arguments = command(tmp_path, videos, *own)
        words = [python, '-c', JOINED, port, str(number), *arguments]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        started.append(subprocess.Popen(words, env=environment, cwd=ROOT, text=True, **pipes))
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [1, 1], said
    assert 'hosts [1] and host 0 differ in config' in said[0][0]
    assert re.search(r'^ok +collectives +fsdp: all-reduce', said[0][0], re.M), said
    assert re.search(r'^skipped +workdir +needs hosts', said[0][0], re.M) and 'FAILED' not in said[1][0]


def test_collectives_are_checked_along_every_axis(facts, monkeypatch):
    status, text = run_named(facts, 'collectives')['collectives']
    assert status == 'ok'
    for axis in ('data', 'fsdp'):
        assert re.search(rf'{axis}: all-reduce [\d.]+, all-gather [\d.]+, reduce-scatter [\d.]+, all-to-all', text)
    for name, sound in list(collectives.COLLECTIVES.items()):
        off_by_one = dataclasses.replace(sound, run=lambda x, axis, run=sound.run: run(x, axis).at[-1].add(1))
        monkeypatch.setattr(collectives, 'COLLECTIVES', {name: off_by_one})
        status, text = run_named(facts, 'collectives')['collectives']
        assert status == 'FAILED' and f'{name} along mesh.data gave wrong values on cpu:0, cpu:1' in text


def test_versions():
    pins = f'# all\njax=={jax.__version__}  # why\nnumpy==0.1\nnone==1; python_version < "3"\n'
    (wrong,) = preflight_checks.wrong_versions(pins)
    assert wrong.startswith('numpy is ') and wrong.endswith('pinned ==0.1')


def test_versions_of_the_tpu_half_of_jax(facts, monkeypatch):
    assert run_named(facts, 'versions')['versions'][0] == 'ok'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    lines = ['numpy>=1', 'libtpu==0.0.0.*; extra == "tpu"', 'no-such-package; extra == "cuda"']
    monkeypatch.setattr(preflight_checks.importlib.metadata, 'requires', lambda _: lines)
    status, text = run_named(facts, 'versions')['versions']
    assert status == 'FAILED' and text.startswith('libtpu is ') and 'no-such-package' not in text


def test_hosts_must_agree():
    host = {'time': 100.0, 'config': 'a', 'requirements': 'b', 'code': 'c'}
    assert preflight_checks.host_differences([host, host | {'time': 101.0}]) == []
    (other,) = preflight_checks.host_differences([host, host, host | {'code': 'x'}])
    assert other.startswith('hosts [2] and host 0 differ in code')
    (late,) = preflight_checks.host_differences([host, host | {'time': 160.0}])
    assert 'clocks are 60 s apart' in late and 'NTP' in late


def test_tpu_chips_that_jax_does_not_use(facts, monkeypatch, tmp_path):
    assert run_named(facts, 'devices')['devices'][0] == 'ok'
    monkeypatch.setattr(preflight_checks, 'TPU_FILES', (str(tmp_path),))
    monkeypatch.delenv('JAX_PLATFORMS')
    assert 'pip install "jax[tpu]==' in run_named(facts, 'devices')['devices'][1]


def test_bucket_is_no_folder(facts):
    facts.workdir = preflight.Path('gs://bucket/run')
    assert 'mount the bucket' in run_named(facts, 'workdir')['workdir'][1]


def test_folder_that_hosts_do_not_share(facts):
    assert 'files of hosts [0]' in run_named(facts, 'checkpoint')['checkpoint'][1]


def test_checkpoint_is_compared(facts, monkeypatch):
    monkeypatch.setattr(preflight_checks, 'CPU_CHECKPOINT_BYTES', 2**16)
    assert run_named(facts, 'workdir', 'checkpoint')['checkpoint'][0] == 'ok'
    shutil.rmtree(facts.workdir / preflight_checks.PROBE_FOLDER)

    class Forgetful(Checkpoints):
        def restore(self, abstract):
            return jax.tree.map(lambda x: x.at[-1].add(1), super().restore(abstract))

    monkeypatch.setattr(preflight_checks, 'Checkpoints', Forgetful)
    assert 'differs from the saved one' in run_named(facts, 'workdir', 'checkpoint')['checkpoint'][1]


def test_folder_of_another_experiment(facts):
    save_config(facts.workdir, dataclasses.replace(facts.config, seed=5))
    checkpoints = Checkpoints(facts.workdir, keep=1)
    checkpoints.save(1, {'ema': {'w': jnp.ones(3)}})
    checkpoints.close()
    text = run_named(facts, 'workdir', 'checkpoint')['checkpoint'][1]
    assert 'was started with seed = 5, not 0: use another --workdir' in text


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip('needs root, to mount a file system small enough to fill')
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', tmp_path]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f'this machine lets no file system be mounted: {mounted.stderr.strip()}')
    yield tmp_path
    subprocess.run(['umount', tmp_path], check=True)


def test_full_disk(facts, small_disk):
    found = run_named(facts, 'workdir', 'checkpoint', 'tokenizer', 'state')
    assert found['workdir'][0] == 'ok' and found['checkpoint'] == ('FAILED', console.DISK_FULL)
    status, text = found['state']  # 1.3 MB of state: three checkpoints, two kept and one being written
    assert status == 'FAILED' and 'lower train.keep_checkpoints or choose another --workdir' in text


def test_state_that_the_devices_cannot_hold(facts, monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {'bytes_limit': 1000})
    assert run_named(facts, 'tokenizer', 'state')['state'][0] == 'ok' and facts.parameters == 79_952
    monkeypatch.setattr(jax, 'local_devices', lambda: [device])
    assert 'raise mesh.fsdp' in run_named(facts, 'state')['state'][1]


@pytest.fixture
def fake_step(facts, monkeypatch):
    """Optimizer steps of 0.1 s or more that end as the test says: `bad` is the index of the leaf that is not finite."""
    ended = types.SimpleNamespace(bad=-1)

    def step(state, tokenizer, batch):
        time.sleep(0.1)
        return state, {'loss': jnp.float32(2), 'bad_leaf': jnp.int32(ended.bad)}

    lowered = types.SimpleNamespace(compile=lambda: step)
    monkeypatch.setattr(preflight_checks, 'lower_train_step', lambda *_: lowered)
    facts.factory = types.SimpleNamespace(init=lambda _: types.SimpleNamespace(params={'w': jnp.ones(2)}))
    facts.batch, facts.clips_per_second = {}, 1e6
    monkeypatch.setattr(jax, 'block_until_ready', lambda x: x)
    return ended


def test_step_is_held_against_the_data(facts, fake_step):
    status, text = run_named(facts, 'step')['step']
    assert status == 'ok' and 'loss 2.0000' in text and 'raise data.threads' not in text
    facts.clips_per_second = 1.0
    assert 'more than the data delivers: raise data.threads' in run_named(facts, 'step')['step'][1]
    facts.parameters = 10**9
    assert 'not run (--step=auto, 1,000,000,000 parameters)' in run_named(facts, 'step')['step'][1]
    facts.step = 'always'
    fake_step.bad = 1
    assert run_named(facts, 'step')['step'] == (
        'FAILED', 'w is not finite in the first steps: lower optim.learning_rate',
    )  # fmt: skip


def test_check_that_does_not_end_ends_the_command(facts, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    slow = Check('slow', lambda _: time.sleep(0.5) or 'done')
    assert list(preflight.run_checks((slow,), facts, timeout=0.05)) == [('ok', 'slow', 'done')]
    assert ended == [1] and re.match(r'FAILED +slow +not done after 0.05 s', capsys.readouterr().out)
    assert list(preflight.run_checks((slow,), facts, timeout=60)) and ended == [1]


def test_unexpected_errors_are_failures_of_their_check_and_bugs_keep_their_traceback(facts):
    def broken(error):
        def raise_it(_):
            raise error

        return Check('broken', raise_it)

    (told,) = preflight.run_checks((broken(RuntimeError('INTERNAL:\n  link down')),), facts, timeout=60)
    assert told == ('FAILED', 'broken', 'INTERNAL: link down')
    with pytest.raises(KeyError):
        list(preflight.run_checks((broken(KeyError('bug')),), facts, timeout=60))
    assert issubclass(ConfigError, console.EXPECTED_ERRORS)


def test_a_bug_in_a_check_leaves_no_watchdog(facts):
    """Else it would end whatever this process does next."""
    broken = Check('broken', lambda _: {}['missing'])
    with pytest.raises(KeyError):
        list(preflight.run_checks((broken,), facts, timeout=60))
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)
