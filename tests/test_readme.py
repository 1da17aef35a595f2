"""Every command of the README runs, shrunk by the configs' `runlocal` switch; and what it says of the files is true."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from magi_jax.data.video_file import write_mp4
from tests.compilation import FAST_COMPILATION

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
OUT = ROOT / 'runs' / 'quickstart_runlocal'
SIX_FILES_LINES = 1400


def commands() -> list[str]:
    """The lines of the README's bash blocks, without comments."""
    blocks = re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    lines = [line.split('  #')[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def shrunk(command: str, tmp_path: Path) -> list[str]:
    """The same command on toys: runlocal configs, the quickstart's dry run as work folder, files of this test."""
    command = re.sub(r'(--config configs/\w+\.py)', r'\1:runlocal', command)
    command = re.sub(r' runs/(?!quickstart)', f' {tmp_path}/', command).replace(' runs/quickstart/', f' {OUT}/')
    command = command.replace('=runs/', f'={tmp_path}/')
    command = command.replace('--frames 64', '--frames 6').replace('--context_frames 5', '--context_frames 2')
    command = command.replace('clip.mp4', str(tmp_path / 'clip.mp4')).replace('my_videos', str(tmp_path / 'my_videos'))
    return [sys.executable if word == 'python' else word for word in shlex.split(command)]


def run(command: list[str], cache: Path) -> subprocess.CompletedProcess:
    extra = {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environment = {
        **os.environ,
        **extra,
        'JAX_ENABLE_COMPILATION_CACHE': 'true',
        'XLA_FLAGS': FAST_COMPILATION,
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def quickstart(cache):
    """The dry run of launch/quickstart.sh, from nothing."""
    subprocess.run(['rm', '-rf', str(OUT)], check=True)
    result = run(['bash', 'launch/quickstart.sh', 'runlocal'], cache)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_quickstart_makes_its_files_and_reuses_them(quickstart, cache):
    for name in ('report.html', 'metrics.json', 'prediction.gif', 'long.gif', 'long.mp4'):
        assert (OUT / name).stat().st_size > 0
    made = (OUT / 'report.html').stat().st_mtime_ns
    again = run(['bash', 'launch/quickstart.sh', 'runlocal'], cache)
    assert again.returncode == 0 and 'nothing new' in again.stdout
    assert (OUT / 'report.html').stat().st_mtime_ns == made


def test_quickstart_commands_are_those_of_the_script(quickstart):
    script = (ROOT / 'launch/quickstart.sh').read_text()
    script = script.replace('"$PYTHON"', 'python').replace(':$variant', '').replace('$out', 'runs/quickstart')
    script = script.replace('"', '').replace('\\\n ', '')
    shown = [line for line in commands() if re.search(r'launch\.(train|evaluate)', line) and 'my_videos' not in line]
    assert len(shown) == 3
    for line in shown:
        assert line in script, line


@pytest.mark.parametrize('command', [line for line in commands() if 'launch.sample' in line])
def test_sample_commands_run(command, quickstart, cache, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    write_mp4(tmp_path / 'clip.mp4', clip, 8)
    result = run(shrunk(command, tmp_path), cache)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob('*/*.mp4'))


def test_reconstructions_of_the_autoencoder_are_measured(quickstart, cache, tmp_path):
    command = [sys.executable, '-m', 'launch.evaluate', '--protocol', 'shapes_five_frame_runlocal', '--workdir']
    result = run([*command, str(OUT / 'autoencoder'), '--out', str(tmp_path)], cache)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())['reconstruction']
    assert found['mean'] > 3 * found['floor'] > 0  # after four steps


@pytest.mark.slow
def test_own_videos_train(quickstart, cache, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(16):
        folder = tmp_path / 'my_videos' / ('train' if number < 8 else 'validation')
        folder.mkdir(parents=True, exist_ok=True)
        write_mp4(folder / f'{number}.mp4', rng.integers(0, 256, (12, 48, 80, 3), np.uint8), 8)
    lines = [line for line in commands() if 'my_videos' in line]
    assert len(lines) == 2
    for line in lines:
        result = run(shrunk(line, tmp_path), cache)
        assert result.returncode == 0, result.stderr


def test_every_command_is_covered():
    # compile, preflight, prepare_data and study run in tests/launch/, with the same flags.
    tested = 'train|sample|evaluate|compile|preflight|prepare_data|study'
    covered = rf'^(bash launch/(quickstart|test)\.sh|python -m launch\.({tested}) )'
    assert [line for line in commands() if not re.match(covered, line)] == []


def test_files_named_exist_and_the_six_are_short():
    named = re.findall(r'\]\(([\w/.]+\.(?:py|gif|png|sh))\)', README)
    assert len(named) >= 8 and all((ROOT / name).is_file() for name in named)
    six = re.findall(r'^\| \[`([\w/.]+\.py)`\]', README, re.MULTILINE)
    assert len(six) == 6
    assert sum((ROOT / name).read_text().count('\n') for name in six) <= SIX_FILES_LINES
