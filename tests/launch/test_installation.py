"""The project installed: into the scripts' .venv, as a wheel, and with the oldest versions of pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.launch.commands import ROOT
from tests.launch.scripts import put_command

FAKE_PYTHON = '#!/usr/bin/env bash\nif [[ $1 == -m ]]; then echo "$*" >>"$LOG"; fi\n'
OLDEST_TESTS = (
    'tests/test_config.py',
    'tests/test_checkpoint.py',
    'tests/data/test_pipeline.py',
    'tests/evaluation/test_report.py',
)


def run(command, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'XLA_FLAGS')}
    result = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=3000, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def checkout(folder):
    """A copy of what a fresh clone holds of the project."""
    for name in ('magi_jax', 'launch', 'configs', 'tests'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, folder)
    return folder


def oldest_versions():
    """Every dependency at its lower bound."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    wanted = map(Requirement, project['dependencies'] + project['optional-dependencies']['test'])
    bounds = {one.name: next(s.version for s in one.specifier if s.operator == '>=') for one in wanted}
    return ''.join(f'{name}=={version}\n' for name, version in bounds.items())


def use(python, folder):
    """What a user does, in a folder without a checkout: train both models by name, sample, load, evaluate."""
    launch = [python, '-m', 'magi_jax.launch.train']
    run([*launch, '--config', 'quickstart_autoencoder:runlocal', '--workdir', 'autoencoder'], folder)
    tokenizer = '--config.tokenizer.path=autoencoder/tokenizer'
    run([*launch, '--config', 'quickstart.py:runlocal', '--workdir', 'magi', tokenizer], folder)
    sample = [python, '-m', 'magi_jax.launch.sample', '--workdir', 'magi', '--frames', '4', '--out', 'videos']
    assert '1 videos of 4 frames' in run(sample, folder)
    code = "import magi_jax; print(magi_jax.load('magi').sample(frames=2, num=2).shape)"
    assert '(2, 2, 64, 64, 3)' in run([python, '-c', code], folder)
    evaluate = [python, '-m', 'magi_jax.launch.evaluate', '--workdir', 'magi', '--out', 'report', '--protocol']
    run([*evaluate, 'shapes_five_frame_runlocal'], folder)  # looks through the shipped weights
    assert (folder / 'report/metrics.json').exists() and (folder / 'report/report.html').exists()


def assert_installed_in_own_namespace(python, folder):
    code = "from importlib.util import find_spec as f; print(f('launch'), f('configs'), f('magi_jax').origin)"
    assert run([python, '-c', code], folder).startswith('None None ')
    shown = run([python, '-m', 'magi_jax.launch.train', '--help', '--config', 'own_videos'], folder)
    assert 'python -m magi_jax.launch.encode_latents' in shown and 'MAGI on your own videos' in shown


@pytest.fixture
def environment_script(tmp_path):
    """Runs launch/environment.sh of a project whose .venv has a fake python -> the commands that it was given."""
    for name in ('launch', '.venv/bin'):
        (tmp_path / 'project' / name).mkdir(parents=True)
    project = tmp_path / 'project'
    for name in ('launch/environment.sh', 'requirements.txt', 'pyproject.toml'):
        shutil.copy(ROOT / name, project / name)
    put_command(project / '.venv/bin', 'python', FAKE_PYTHON)
    (project / '.venv/requirements.installed').write_text('of an earlier version')

    def source(place=project):
        log = tmp_path / 'log'
        log.write_text('')
        run(['bash', '-c', 'source launch/environment.sh'], place, LOG=str(log))
        return log.read_text()

    return project, source


def test_scripts_install_the_project_in_place_once(environment_script):
    project, source = environment_script
    first = source()
    assert '--no-compile -r' in first and f'--no-deps --no-build-isolation --editable {project}' in first
    assert source() == ''


def test_scripts_install_again_when_the_project_changed_or_moved(environment_script):
    project, source = environment_script
    source()
    for name in ('pyproject.toml', 'requirements.txt'):
        with (project / name).open('a') as file:
            file.write('# changed\n')
        assert '--editable' in source() and source() == ''
    moved = project.rename(project.with_name('moved'))
    assert f'--editable {moved}' in source(moved) and source(moved) == ''


def test_scripts_use_a_linked_environment_as_it_is(environment_script):
    project, source = environment_script
    (project / '.venv').rename(project.parent / 'shared')
    (project / '.venv').symlink_to(project.parent / 'shared')
    assert source() == ''


@pytest.mark.slow
def test_wheel_in_a_bare_environment_trains_samples_and_evaluates_by_config_name(tmp_path):
    (tmp_path / 'source').mkdir()
    (tmp_path / 'work').mkdir()
    run([sys.executable, '-m', 'venv', 'bare'], tmp_path)
    python = str(tmp_path / 'bare/bin/python')
    pins = ['-c', str(ROOT / 'requirements.txt')]
    run([python, '-m', 'pip', 'install', '-q', *pins, str(checkout(tmp_path / 'source'))], tmp_path)
    shutil.rmtree(tmp_path / 'source')
    assert_installed_in_own_namespace(python, tmp_path / 'work')
    use(python, tmp_path / 'work')


@pytest.mark.slow
def test_source_archive_makes_a_complete_wheel(tmp_path):
    source = checkout(tmp_path)
    build = 'from setuptools import build_meta as b; print(b.build_sdist("out"))'
    run([sys.executable, '-c', build], source)
    archive = next((source / 'out').glob('*.tar.gz'))
    run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', 'out', archive], source)
    names = zipfile.ZipFile(next((source / 'out').glob('*.whl'))).namelist()
    assert {re.split('/', name)[0] for name in names} == {'magi_jax', 'magi_jax-0.1.0.dist-info'}
    for top in ('launch', 'configs', 'magi_jax'):
        for path in (ROOT / top).rglob('*.py'):
            name = path.relative_to(ROOT).as_posix()
            assert (name if top == 'magi_jax' else f'magi_jax/{name}') in names
    assert 'magi_jax/evaluation/weights/shapes.npz' in names
    assert 'magi_jax/evaluation/templates/style.css' in names


@pytest.mark.slow
def test_oldest_versions_of_pyproject_train_sample_evaluate_and_pass_tests(tmp_path):
    source, work = tmp_path / 'source', tmp_path / 'work'
    source.mkdir()
    work.mkdir()
    (tmp_path / 'oldest.txt').write_text(oldest_versions())
    run([sys.executable, '-m', 'venv', 'oldest'], tmp_path)
    python = str(tmp_path / 'oldest/bin/python')
    wanted = f'{checkout(source)}[test]'
    run([python, '-m', 'pip', 'install', '-q', '-c', 'oldest.txt', wanted], tmp_path)
    assert_installed_in_own_namespace(python, work)
    use(python, work)
    run([python, '-m', 'pytest', '-q', '-n', '0', *map(str, map(Path, OLDEST_TESTS))], source)
