"""Commands in odd places: no home folder, backends that are not there, `~` in every path, two runs in one folder."""

import ast
import os
import runpy
import signal
import subprocess
import sys

import pytest
from absl import flags

from launch import console
from magi_jax.config import ConfigError, MagiSamplerConfig, field_help, from_config_dict
from magi_jax.data import cache, prepared
from magi_jax.fields import expand_path
from magi_jax.training.workdir_lock import LOCK, locked
from tests.launch.commands import ROOT, assert_one_line, module, run, train_command
from tests.launch.forked import CONTEXT, run_forked

COMMANDS = sorted(path.stem for path in (ROOT / 'launch').glob('*.py') if '__main__' in path.read_text())
# Text flags that name no file of this machine.
NOT_PATHS = {'against', 'codec', 'coordinator', 'dataset', 'license', 'made_by', 'protocol', 'push', 'sampler', 'shard'}
NOT_PATHS |= {'device', 'prompt', 'size', 'system_prompt', 'topology', 'weights_sha256'}
NO_HOME = {'HOME': '/dev/null/home'}
HOLD_LOCK = """
import pathlib, sys
from magi_jax.training.workdir_lock import _take
import contextlib
with contextlib.ExitStack() as stack:
    assert _take(pathlib.Path(sys.argv[1]), stack)
    print('held', flush=True)
    sys.stdin.read()
"""


def flag_calls(source):
    """(name of the function, name of the flag) of every definition of a flag."""
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ''
        if name.split('.')[-1].startswith(('DEFINE', 'define_path')) and isinstance(node.args[0], ast.Constant):
            yield name, node.args[0].value


@pytest.mark.parametrize('command', COMMANDS)
def test_every_text_flag_is_a_path_or_known_not_to_be_one(command):
    for function, flag in flag_calls((ROOT / 'launch' / f'{command}.py').read_text()):
        if function.endswith(('_string', '_list')):
            assert flag in NOT_PATHS, f'launch.{command} --{flag}: define it by console.define_path, or add it here'


def _parsed(command, queue):
    """Puts {flag: value} of a command's path flags, each given as ~/x."""
    sys.argv = [command]
    runpy.run_module(f'launch.{command}', run_name='not main')
    kinds = {name: type(flag.parser).__name__ for name, flag in flags.FLAGS._flags().items()}
    paths = [name for name, kind in kinds.items() if kind == '_PathParser']
    flags.FLAGS([command, *(f'--{name}=~/x' for name in paths)])
    queue.put({name: flags.FLAGS[name].value for name in paths})


def test_a_tilde_is_the_home_folder_in_every_path_flag_of_every_command():
    known = {}
    for command in COMMANDS:
        queue = CONTEXT.SimpleQueue()
        process = CONTEXT.Process(target=_parsed, args=(command, queue))
        process.start()
        process.join(timeout=120)
        assert process.exitcode == 0, command
        known[command] = queue.get()
    values = {value for parsed in known.values() for value in parsed.values()}
    assert values == {os.path.expanduser('~/x')} and sum(map(len, known.values())) > 20
    assert {'workdir', 'out', 'context'} <= set(known['sample'])


def test_a_tilde_is_the_home_folder_in_paths_of_a_config(tmp_path, environment):
    config = from_config_dict({'data': {'path': '~/videos'}, 'tokenizer': {'path': '~/a/tokenizer'}})
    assert config.data.path == os.path.expanduser('~/videos')
    assert config.tokenizer.path == os.path.expanduser('~/a/tokenizer')
    command = ['--config=~/no.py', '--config.data.path=~/nothing', '--workdir=~/x']
    result = run_forked([*module('launch.train'), *command], environment)
    assert_one_line(result, f'{environment["HOME"]}/no.py')
    with pytest.raises(ConfigError, match='home folder in .* is unknown'):
        expand_path('~nobody_of_this_name/x')


@pytest.mark.parametrize('setting', [{'JAX_PLATFORMS': 'cuda'}, {'JAX_PLATFORMS': 'tpu'}, {'JAX_ENABLE_X64': '1'}])
def test_what_jax_cannot_do_here_is_one_line(tmp_path, environment, videos, setting):
    ((name, value),) = setting.items()
    result = run(train_command(tmp_path / 'run', videos), environment | setting)
    if value == 'tpu':  # the TPU library, where it is installed, writes lines of its own before
        assert 'Traceback' not in result.stderr
        result.stderr = result.stderr.strip().splitlines()[-1]
    assert_one_line(result, name, 'unset')
    assert name == 'JAX_ENABLE_X64' or f'{name}={value}' in result.stderr


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError('RESOURCE_EXHAUSTED: 9 bytes')])
def test_too_little_memory_is_one_line(capsys, error):
    assert console.report(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: out of memory (') and 'lower data.batch_size' in line


def test_without_a_home_the_message_names_the_setting(tmp_path, environment):
    command = [*module('launch.train'), '--config', str(ROOT / 'configs/quickstart.py:runlocal')]
    result = run_forked([*command, '--workdir', str(tmp_path)], environment | NO_HOME)
    *_, last = result.stderr.strip().splitlines()
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert last.startswith('error: cannot write to /dev/null/home/.cache/magi_jax') and 'set MAGI_JAX_CACHE to' in last


def test_the_cache_folder_can_be_moved(tmp_path, environment, monkeypatch):
    moved = environment | NO_HOME | {'MAGI_JAX_CACHE': str(tmp_path / 'moved')}
    result = run_forked([*module('launch.prepare_data'), '--dataset', 'mine', '--check'], moved)
    assert result.returncode == 1 and str(tmp_path / 'moved') in result.stderr and '/dev/null' not in result.stderr
    monkeypatch.setattr(cache, '_override', [])
    cache.set_cache_folder('~/elsewhere')
    assert str(cache.cache_folder()) == os.path.expanduser('~/elsewhere')


@pytest.mark.parametrize('command', ['train', 'sample', 'evaluate'])
def test_a_missing_flag_is_told_with_an_example(environment, command):
    config = ['--config', str(ROOT / 'configs/quickstart.py:runlocal')] if command == 'train' else []
    result = run_forked([*module(f'launch.{command}'), *config], environment)
    assert_one_line(result, '--workdir is missing: add --workdir (', f'as in python -m launch.{command} --')


def test_help_lists_the_fields_of_the_sampler(environment):
    result = run_forked([*module('launch.sample'), '--help'], environment)
    text = ' '.join(result.stdout.split())
    assert all(f'{name}: ' in text for name in field_help(MagiSamplerConfig)) and 'mask_steps: from 1 to 65536' in text


def test_a_missing_tokenizer_is_told_with_its_command(tmp_path, environment, videos):
    def refused(*fields):
        return run_forked(
            train_command(tmp_path, videos, *(f'--config.tokenizer.{field}' for field in fields)), environment
        )

    own = refused('kind=autoencoder_kl', 'path=/no/autoencoder/tokenizer')
    assert_one_line(
        own, 'no tokenizer in /no/autoencoder/tokenizer', 'python -m launch.train', '--workdir /no/autoencoder'
    )
    published = refused('kind=sd_vae', 'path=/no/sd')
    assert_one_line(published, 'python -m launch.convert_weights --kind sd_vae --source FILE --out /no/sd')


def test_a_second_run_in_a_work_folder_is_refused_until_the_first_is_gone(tmp_path, environment, videos):
    held = [sys.executable, '-c', HOLD_LOCK, str(tmp_path / LOCK)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(held, cwd=ROOT, env=environment, **pipes) as other:
        assert other.stdout.readline() == 'held\n'
        result = run_forked(train_command(tmp_path, videos), environment)
        assert_one_line(result, f'another process is training in {tmp_path}: wait', 'another --workdir')
        assert not (tmp_path / 'config.json').exists()
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=60)
    with locked(tmp_path), pytest.raises(ConfigError, match='another process'), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_for_checkpoints_or_datasets_that_is_not_utf8_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    with pytest.raises(ConfigError, match=r'caf\\xe9 is not UTF-8'), locked(folder):
        pytest.fail('locked')
    with pytest.raises(ConfigError, match=r'caf\\xe9 is not UTF-8'):
        prepared.dataset_folder('mine', str(folder))
    assert prepared.dataset_folder('mine', str(tmp_path / 'é')).parts[-3:] == ('é', 'mine', prepared.VERSION)


def test_a_folder_that_cannot_be_locked_is_left_to_the_error_of_saving():
    with locked(type(ROOT)('/dev/null/run')):
        pass
