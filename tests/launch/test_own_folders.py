"""Folders of 1 to 200 videos go through all commands, as they are: the five of configs/own_videos.py, and two."""

import os

import numpy as np
import pytest

from tests.data import video_kinds
from tests.launch.commands import assert_one_line, module, run

pytestmark = pytest.mark.slow
CONFIG = 'configs/own_videos.py:'
FORMATS = (
    ('libx264', 'mp4', 'mp4'),
    ('mpeg4', 'mp4', 'mov'),
    ('libvpx', 'webm', 'webm'),
    ('libx264', 'matroska', 'mkv'),
)


def path_of(folder, number):
    """The path of a file; of the second one, the name is not UTF-8."""
    suffix = FORMATS[number % len(FORMATS)][2]
    return folder / (os.fsdecode(b'video_1.caf\xe9:.') + suffix if number == 1 else f'video_{number}.{suffix}')


def fill(folder, count):
    """`count` files of 60 frames in four formats; from the 12th on, repetitions of those before."""
    folder.mkdir()
    for number in range(count):
        codec, container, _ = FORMATS[number % len(FORMATS)]
        if number < 12:
            content = video_kinds.encode(codec, container, video_kinds.moving(60, height=48, width=64 + 2 * number))
        else:
            content = path_of(folder, number % 12).read_bytes()
        path_of(folder, number).write_bytes(content)
    return folder


@pytest.fixture
def do(environment):
    def do(name, *arguments):
        result = run([*module(name), *map(str, arguments)], environment | {'XLA_FLAGS': ''})
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    return do


@pytest.mark.parametrize('count', [1, 2, 3, 5, 10, 200])
def test_five_commands_take_a_folder_of(count, tmp_path, do):
    clips, data = fill(tmp_path / 'clips', count), f'--data_dir={tmp_path / "data"}'
    path, tokenizer = f'--config.data.path={tmp_path / "data"}', tmp_path / 'autoencoder/tokenizer'
    said = do('launch.prepare_data', '--dataset=my_videos', f'--source={clips}', data, '--processes=2')
    assert ('train/ validation/ test/' in said) == (count < 200) and '+ 0 skipped' in said
    do('launch.train', f'--config={CONFIG}autoencoder,runlocal', path, f'--workdir={tmp_path / "autoencoder"}')
    tokenizer = f'--config.tokenizer.path={tokenizer}'
    do('launch.encode_latents', f'--config={CONFIG}runlocal', path, tokenizer, data, '--dataset=my_latents')
    workdir = f'--workdir={tmp_path / "magi"}'
    do('launch.train', f'--config={CONFIG}runlocal', path, tokenizer, '--config.data.source=my_latents', workdir)
    do('launch.sample', workdir, '--frames=8', f'--out={tmp_path / "new"}')
    with np.load(tmp_path / 'new' / 'videos.npz') as made:
        assert made['videos'].shape == (1, 8, 64, 64, 3)


@pytest.mark.parametrize('count', [1, 2, 3, 5, 10, 200])
def test_two_commands_take_a_folder_of(count, tmp_path, do):
    clips = fill(tmp_path / 'clips', count)
    videos = ['--config.data.source=video_folder', f'--config.data.path={clips}']
    said = do(
        'launch.train', f'--config={CONFIG}autoencoder,runlocal', *videos, f'--workdir={tmp_path / "autoencoder"}'
    )
    assert said.count('train/ validation/ test/') == (1 if count < 200 else 0)
    tokenizer = f'--config.tokenizer.path={tmp_path / "autoencoder/tokenizer"}'
    do('launch.train', f'--config={CONFIG}runlocal', *videos, tokenizer, f'--workdir={tmp_path / "magi"}')


def test_files_sorted_after_a_preparation_lead_on(tmp_path, do, environment):
    clips, data = fill(tmp_path / 'clips', 3), f'--data_dir={tmp_path / "data"}'
    command = ['launch.prepare_data', '--dataset=my_videos', f'--source={clips}', data, '--processes=2']
    assert '--replace' in do(*command)
    for number, split in enumerate(('train', 'validation', 'test')):
        (clips / split).mkdir()
        path = path_of(clips, number)
        path.rename(clips / split / path.name)
    assert_one_line(run([*module(command[0]), *command[1:]], environment), '--replace')
    assert '3 prepared (test 1, train 1, validation 1)' in do(*command, '--replace')
