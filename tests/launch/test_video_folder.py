"""The folder that launch.sample writes to."""

import json

import pytest

from launch import video_folder
from magi_jax.config import ConfigError

SETTINGS = {'workdir': '/run', 'seed': 0, 'frames': 4, 'sampler.temperature': 1.0}


def _fill(folder, *names):
    for name in names:
        (folder / name).write_text(f'the {name} of a user')
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize('name', ['00.mp4', '123.gif', 'videos.npz', 'settings.json', '000000.mp4'])
def test_a_folder_with_files_of_another_call_is_refused(tmp_path, name):
    _fill(tmp_path, name, 'clip.mp4')
    with pytest.raises(ConfigError, match=f'holds files of another call .{name}.: give another --out'):
        video_folder.check_no_videos(tmp_path)


def test_other_files_do_not_matter(tmp_path):
    _fill(tmp_path, 'clip.mp4', 'report.html', 'long.gif', '.unfinished.mp4', 'metrics.json')
    video_folder.check_no_videos(tmp_path)
    video_folder.write_settings(tmp_path, SETTINGS)
    assert json.loads((tmp_path / 'settings.json').read_text()) == SETTINGS


@pytest.mark.parametrize(
    'names',
    [
        ['00.mp4', '00.gif', 'videos.npz'],  # without --batch
        ['000000.mp4'],  # of settings that nobody knows
        ['settings.json'],  # of another program
        ['settings.json', '000000.mp4'],
    ],
)
def test_batches_do_not_go_on_in_a_folder_of_something_else(tmp_path, names):
    before = _fill(tmp_path, *names)
    with pytest.raises(ConfigError, match='give another --out'):
        video_folder.write_settings(tmp_path, SETTINGS)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_batches_go_on_with_their_own_settings_and_those_that_are_newer_than_the_folder(tmp_path):
    video_folder.write_settings(tmp_path, SETTINGS)
    _fill(tmp_path, '000000.mp4', '.000001.mp4.x2k')
    video_folder.write_settings(tmp_path, SETTINGS | {'sampler.spacing': 'even'})
    assert not (tmp_path / '.000001.mp4.x2k').exists()
    video_folder.write_settings(tmp_path, SETTINGS | {'prompt': None, 'size': None})
    for changed in ({'seed': 1}, {'sampler.spacing': 'trailing'}, {'prompt': 'a disc'}, {'size': ['8', '24']}):
        with pytest.raises(ConfigError, match=f'sampled with {next(iter(changed))} = .*: give another --out'):
            video_folder.write_settings(tmp_path, SETTINGS | changed)


def test_videos_of_prompts_go_on_with_their_own_settings_only(tmp_path):
    names = video_folder.PROMPT_OUTPUT_NAMES
    _fill(tmp_path, 'a disc.mp4', 'disc-a.mp4')  # not of a call
    video_folder.write_settings(tmp_path, SETTINGS | {'num': 2}, names)
    video_folder.write_settings(tmp_path, SETTINGS | {'num': 3}, names)  # there is no video yet
    _fill(tmp_path, 'a disc-0.mp4', '.a disc-1.mp4.x2k')
    video_folder.write_settings(tmp_path, SETTINGS | {'num': 3}, names)
    assert not (tmp_path / '.a disc-1.mp4.x2k').exists()
    with pytest.raises(ConfigError, match='sampled with num = 3, not 2: give another --out'):
        video_folder.write_settings(tmp_path, SETTINGS | {'num': 2}, names)
    (tmp_path / 'settings.json').unlink()
    with pytest.raises(ConfigError, match=r'holds files of another call .a disc-0\.mp4.: give another --out'):
        video_folder.write_settings(tmp_path, SETTINGS, names)


def test_files_of_one_call_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match='disk full'), video_folder.write_together(tmp_path) as draft:
        _fill(draft, '00.mp4')
        raise OSError('disk full')
    assert not list(tmp_path.iterdir())
    (tmp_path / video_folder.DRAFT).mkdir()  # of a call that was killed
    _fill(tmp_path / video_folder.DRAFT, '07.mp4')
    with video_folder.write_together(tmp_path) as draft:
        _fill(draft, '00.mp4', 'videos.npz')
        assert [path.name for path in tmp_path.iterdir()] == [video_folder.DRAFT]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['00.mp4', 'videos.npz']


def test_a_locked_folder_is_refused_to_others_and_removed_if_nothing_was_made(tmp_path):
    folder = tmp_path / 'new' / 'out'
    refused = pytest.raises(ConfigError, match=f'another launch.sample is writing to {folder}')
    with refused, video_folder.locked(folder), video_folder.locked(folder):
        pass
    assert not list(tmp_path.iterdir())
    with video_folder.locked(folder):
        _fill(folder, '00.mp4')
    assert [path.name for path in folder.iterdir()] == ['00.mp4']
    with pytest.raises(ConfigError, match='is a file: give a folder'), video_folder.locked(folder / '00.mp4'):
        pass
