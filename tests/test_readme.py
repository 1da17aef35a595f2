"""The commands of the first page run, shrunk by the configs' `runlocal` switch. tests/test_pages.py reads all pages."""

import html
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
from magi_jax.evaluation.prediction import score_prediction, score_rollout
from magi_jax.evaluation.protocols import PROTOCOLS
from tests import pages
from tests.compilation import FAST_COMPILATION
from tests.evaluation.clips import real_clips
from tests.pages import ROOT

OUT = ROOT / 'runs' / 'quickstart_runlocal'
COMMANDS = [command.text for command in pages.commands(ROOT / 'README.md')]


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
    assert again.returncode == 0 and 'the report is up to date' in again.stdout
    assert (OUT / 'report.html').stat().st_mtime_ns == made


def test_quickstart_says_what_was_achieved_before_what_was_missed(quickstart):
    said = quickstart.stdout
    assert said.index('frames predicted after 5 given ones: PSNR') < said.index('of 7 reached') < said.index('missed')
    assert said.splitlines()[-1].startswith('done: ')
    assert '1 of 4: sampling predictions' in quickstart.stderr and '4 of 4: writing the report' in quickstart.stderr


def test_goals_of_the_report_are_those_of_the_evaluation_page():
    protocol = PROTOCOLS['bouncing_shapes']
    video, labels = real_clips(1, protocol.long_frames)
    short = video[:, : protocol.frames]
    results = (
        score_prediction(short[:, protocol.context :], short),
        score_rollout(video, video, labels, protocol.context),
    )
    page = ' '.join((ROOT / 'magi_jax/evaluation/README.md').read_text().split())
    rules = [rule for result in results for rule in result.passes]
    assert len(rules) == 7 and 'which of seven goals were reached' in page
    for rule in rules:
        *name, condition = rule.split(': ')
        assert condition in page and all(f'{each}, ' in page or f'{each}: ' in page for each in name), rule


def shown_commands(folder: Path) -> list[str]:
    """The commands that a report says made it, without comments."""
    listed = re.search(
        r'To make this page again</h3>\s*<pre><code>(.*?)</code>', (folder / 'report.html').read_text(), re.S
    )
    return [html.unescape(line).split('  #')[0] for line in listed[1].splitlines()]


def test_commands_of_the_report_are_those_that_made_it(quickstart, cache):
    whole, evaluation = shown_commands(OUT)
    assert whole == 'bash launch/quickstart.sh runlocal'
    made = (OUT / 'metrics.json').read_text()
    words = [sys.executable if word == 'python' else word for word in shlex.split(evaluation)]
    again = run(words, cache)
    assert again.returncode == 0 and 'replacing metrics.json and report.html' in again.stdout, again.stderr
    assert (OUT / 'metrics.json').read_text() == made and shown_commands(OUT) == [whole, evaluation]


def test_a_single_clip_measures_any_run(quickstart, cache, tmp_path):
    command = ['-m', 'launch.evaluate', '--workdir', str(OUT / 'magi'), '--protocol', 'continuation', '--clips', '1']
    command += ['--seeds', '2', '--frames', '4', '--context_frames', '2', '--out', str(tmp_path)]
    result = run([sys.executable, *command], cache)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    assert found['protocol'] == 'continuation --clips 1 --seeds 2 --frames 4 --context_frames 2'
    assert found['frames'] == [3, 4] and found['settings']['split'] == 'test'
    assert len(found['psnr']['by_seed']) == 2 and 0 < found['ssim']['repeat_last_frame'] <= 1
    assert shown_commands(tmp_path) == [shlex.join(['python', *command])]
    assert '1 of 2: sampling clips' in result.stderr and 'PSNR (higher is better)' in result.stdout


def test_quickstart_commands_are_those_of_the_script(quickstart):
    script = (ROOT / 'launch/quickstart.sh').read_text()
    script = script.replace('"$PYTHON"', 'python').replace(':$variant', '').replace('$out', 'runs/quickstart')
    script = script.replace('"', '').replace('\\\n ', '')
    shown = [line for line in COMMANDS if re.search(r'launch\.(train|evaluate)', line) and 'my_videos' not in line]
    assert len(shown) == 3
    for line in shown:
        assert line in script, line


@pytest.mark.parametrize('command', [line for line in COMMANDS if 'launch.sample' in line])
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
    lines = [line for line in COMMANDS if 'my_videos' in line]
    assert len(lines) == 2
    for line in lines:
        result = run(shrunk(line, tmp_path), cache)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_frame_times_are_measured(cache, tmp_path):
    command = [sys.executable, '-m', 'launch.frame_times', '--config', 'configs/quickstart.py:runlocal', '--repeats=1']
    result = run([*command, '--frames=10', '--frames=12', '--out', str(tmp_path)], cache)
    assert result.returncode == 0, result.stderr
    assert '| sliding window |' in result.stdout and (tmp_path / 'frame_times.html').exists()
