"""The scripts of launch/tpu in a project of their own, where the commands of the cloud are fakes."""

import os
import shutil
import subprocess

from tests.launch.commands import ROOT

ODD = ['python', '-m', 'launch.train', '--config.data.path=it\'s "$HOME" `x`', '--config=a b\\', '', '*', '@NAME@ $(y)']


def make_project(tmp_path):
    """A project that holds only launch/."""
    shutil.copytree(ROOT / 'launch', tmp_path / 'magi_jax' / 'launch')
    return tmp_path / 'magi_jax'


def fake_commands(tmp_path, monkeypatch):
    """A folder of commands that come first on PATH, in a home of its own; what must not be called is noted there."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('gcloud', 'kubectl', 'docker'):
        put_command(folder, name, f'#!/usr/bin/env bash\necho "{name} $*" >>"$FAKE/forbidden"\nexit 1\n')
    put_command(folder, 'git', '#!/usr/bin/env bash\necho "git $*" >>"$FAKE/calls"\n')
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE', str(folder))
    monkeypatch.setenv('HOME', str(tmp_path))
    return folder


def assert_nothing_called(folder):
    assert not (folder / 'forbidden').exists(), (folder / 'forbidden').read_text()


def put_command(folder, name, source):
    (folder / name).write_text(source)
    (folder / name).chmod(0o755)


def script(project, name, *arguments, status=0):
    """What a script of launch/tpu says; it must end with `status`."""
    command = ['bash', project / 'launch/tpu' / name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout if status == 0 else result.stderr
