"""Sources: lazy clips of a TFDS dataset and of a folder with good and bad files."""

import dataclasses
import errno
import os
import shutil

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import folder as folders
from magi_jax.data import sources, splits, video_file
from magi_jax.data.builders import bouncing_objects as bouncing


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(bouncing.BouncingObjects.BUILDER_CONFIGS[0], 'counts', {'train': 5, 'test': 2})
    return DataConfig(path=str(tmp_path / 'tfds'))


def gray(value, frames=20, height=24, width=32):
    return np.full((frames, height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'videos'
    (root / 'cats').mkdir(parents=True)
    video_file.write_mp4(root / 'b.mp4', gray(50), 8)
    video_file.write_mp4(root / 'cats' / 'a.MOV', gray(150, frames=17), 8)
    ramp = np.stack([gray(8 * t, 1)[0] for t in range(25)])
    video_file.write_gif(root / 'c.gif', ramp, 8)
    video_file.write_mp4(root / 'short.mp4', gray(9, frames=15), 8)
    (root / 'empty.avi').write_bytes(b'')
    (root / 'text.webm').write_bytes(b'hello' * 50)
    (root / 'notes.txt').write_text('not a video')
    return root


def one_split(root):
    """Moves everything into train/, so that the test does not depend on hashes."""
    names = list(root.iterdir())
    (root / 'train').mkdir()
    for path in names:
        path.rename(root / 'train' / path.name)
    return DataConfig(source='video_folder', path=str(root), height=16, width=16)


def test_tfds_clip_is_the_rendered_video(shapes):
    source = sources.open_source(shapes, 'train')
    made = bouncing.make_video('shapes', 'train', 3)
    video = source[3]
    assert len(source) == 5 and video.num_frames == 400 and video.video_id == 'shapes/train/00003'
    np.testing.assert_array_equal(video.read([7, 3, 399]), made['frames'][[7, 3, 399]])
    for key in ('centres', 'count', 'colours', 'labels', 'sizes'):
        np.testing.assert_array_equal(video.labels[key], made[key])
    assert video.labels['count'].dtype == video.labels['labels'].dtype == np.int32


def test_tfds_reads_only_the_frames_asked_for(shapes, monkeypatch):
    source = sources.open_source(shapes, 'train')
    decoded = []
    original = tfds.features.Tensor.decode_example_np

    def spy(self, value):
        if self.shape == (64, 64, 3):
            decoded.append(np.shape(value))
        return original(self, value)

    monkeypatch.setattr(tfds.features.Tensor, 'decode_example_np', spy)
    source[0].read(range(0, 80, 5))
    assert decoded == [()] * 16


def test_tfds_of_another_size_is_scaled(shapes):
    video = sources.open_source(dataclasses.replace(shapes, height=16, width=32), 'test')[0]
    assert video.read([0, 1]).shape == (2, 16, 32, 3)


def test_tfds_with_one_tensor_feature_and_varying_lengths(tmp_path):
    class Plain(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            video = tfds.features.Tensor(shape=(None, 8, 8, 3), dtype=np.uint8, encoding='zlib')
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'video': video}))

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for n in (16, 18, 40):
                yield n, {'video': np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 3), np.uint8)}

    builder = Plain(data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare(file_format='array_record')
    data = DataConfig(source='plain', path=str(tmp_path), height=8, width=8)
    source = sources.open_source(data, 'train')
    assert sorted(source.lengths) == [16, 18, 40]
    longest = int(np.argmax(source.lengths))
    assert source[longest].read([39, 5])[:, 0, 0, 0].tolist() == [39, 5]
    with pytest.raises(ConfigError, match='2 of 3 videos of plain .* lower data.frames'):
        sources.open_source(dataclasses.replace(data, frames=19), 'train')


def test_mistakes_are_config_errors(shapes, tmp_path):
    cases = [
        (shapes, 'nowhere', r'no split .*nowhere.*: choose one of train, test'),
        (dataclasses.replace(shapes, frames=401), 'train', '5 of 5 videos .* shapes/train/00000 with 400'),
        (dataclasses.replace(shapes, source='bouncing_objects/cats'), 'train', 'bouncing_objects/shapes'),
        (dataclasses.replace(shapes, source='no_such_set'), 'train', 'no dataset no_such_set'),
        (DataConfig(source='video_folder', path=str(tmp_path / 'missing')), 'train', 'not a folder'),
        (DataConfig(source='video_folder', path=str(tmp_path)), 'train', 'no video files'),
        (DataConfig(source='video_folder', path=str(tmp_path)), 'validate', 'not one of train'),
    ]
    for data, split, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            sources.open_source(data, split)
        assert '\n' not in str(error.value)


def test_folder_reads_good_files_and_lists_bad_ones(folder):
    source = sources.open_source(one_split(folder), 'train')
    assert [source[i].video_id for i in range(len(source))] == ['train/b.mp4', 'train/c.gif', 'train/cats/a.MOV']
    assert source.lengths.tolist() == [20, 25, 17]
    reasons = dict(source.skipped)
    assert set(reasons) == {'train/empty.avi', 'train/short.mp4', 'train/text.webm'}
    assert 'empty' in reasons['train/empty.avi'] and '15 frames' in reasons['train/short.mp4']
    assert 'cannot be decoded' in reasons['train/text.webm']
    clip = source[1].read([24, 0, 10])
    assert clip.shape == (3, 16, 16, 3) and clip[:, 8, 8, 0].tolist() == [192, 0, 80]


def test_folder_without_a_usable_file_is_an_error(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'a.mp4').write_bytes(b'')
    with pytest.raises(ConfigError, match=r'none of the 1 video files .*0 bytes'):
        sources.open_source(DataConfig(source='video_folder', path=str(tmp_path)), 'train')


def test_folder_is_decoded_once_until_a_file_changes(folder, monkeypatch):
    data = one_split(folder)
    sources.open_source(data, 'train')
    probed = []
    original = video_file.count_frames
    monkeypatch.setattr(video_file, 'count_frames', lambda path: probed.append(path.name) or original(path))
    sources.open_source(data, 'train')
    assert probed == []
    video_file.write_mp4(folder / 'train' / 'short.mp4', gray(9, frames=18), 8)
    assert 'train/short.mp4' not in dict(sources.open_source(data, 'train').skipped)
    assert probed == ['short.mp4']


def test_hashed_splits_are_stable_and_in_proportion():
    names = [f'clips/{n}.mp4' for n in range(4000)]
    shares = {split: sum(splits.hashed_split(name) == split for name in names) / 4000 for split in splits.SPLITS}
    assert abs(shares['train'] - 0.9) < 0.02 and abs(shares['validation'] - 0.05) < 0.015
    golden = {'0.mp4': 'train', '28.mp4': 'validation', '43.mp4': 'validation', '18.mp4': 'test', '22.mp4': 'test'}
    assert {name: splits.hashed_split(name) for name in golden} == golden


def names_of(count):
    return [f'clip_{number}.mp4' for number in range(count)]


def test_every_split_of_a_folder_has_a_clip_from_one_video_on(tmp_path):
    for count in (1, 2, 3, 5, 10):
        root = tmp_path / str(count)
        root.mkdir()
        for number, name in enumerate(names_of(count)):
            video_file.write_mp4(root / name, gray(20 * number, frames=50), 8)
        data = DataConfig(source='video_folder', path=str(root), height=16, width=16)
        opened = {split: sources.open_source(data, split) for split in splits.SPLITS}
        videos = [source[i] for source in opened.values() for i in range(len(source))]
        assert all(len(source) for source in opened.values())
        assert sum(video.num_frames for video in videos) == 50 * count  # every frame is in exactly one split
        assert len(videos) == (count if count > 2 else 3 * count)


def test_parts_of_one_video_are_disjoint_in_time(tmp_path):
    video_file.write_gif(tmp_path / 'a.gif', np.stack([gray(4 * t, 1)[0] for t in range(60)]), 8)
    data = DataConfig(source='video_folder', path=str(tmp_path), height=16, width=16)
    seen = {}
    for split in splits.SPLITS:
        video = sources.open_source(data, split)[0]
        seen[split] = (video.read(range(video.num_frames))[:, 8, 8, 0] // 4).tolist()
    assert seen == {'train': [*range(28)], 'validation': [*range(28, 44)], 'test': [*range(44, 60)]}


def test_splits_are_those_of_the_hash_where_none_is_empty():
    for count in (45, 200):
        names = names_of(count)
        assert splits.assign(names, lambda _: True) == {name: splits.hashed_split(name) for name in names}


def test_an_added_file_moves_at_most_one_video_for_each_split():
    before = splits.assign(names_of(3), lambda _: True)
    for count in range(4, 60):
        after = splits.assign(names_of(count), lambda _: True)
        assert set(after.values()) == set(splits.SPLITS)
        assert sum(after[name] != split for name, split in before.items()) <= 2
        before = after


def test_unusable_files_do_not_fill_a_split():
    names = names_of(6)
    chosen = splits.assign(names, lambda name: name in names[:3])
    assert {chosen[name] for name in names[:3]} == set(splits.SPLITS)
    assert splits.assign(names, lambda name: name in names[:2])[names[0]] is None
    assert splits.assign(names, lambda _: False) == {name: splits.hashed_split(name) for name in names}


def test_a_warning_tells_how_to_choose():
    text = splits.explain('videos', splits.assign(names_of(3), lambda _: True))
    assert 'test = clip_0.mp4, validation = clip_2.mp4' in text and 'train/ validation/ test/' in text
    assert 'parts of a.mp4' in splits.explain('videos', {'a.mp4': None})
    assert splits.explain('videos', splits.assign(names_of(200), lambda _: True)) == ''


def test_eval_split_falls_back_in_a_sorted_folder_without_validation(folder):
    data = one_split(folder)
    assert sources.eval_split(data) == 'train'
    (folder / 'test').mkdir()
    video_file.write_mp4(folder / 'test' / 'a.mp4', gray(3), 8)
    assert sources.eval_split(data) == 'test'
    (folder / 'val').mkdir()
    video_file.write_mp4(folder / 'val' / 'a.mp4', gray(3), 8)
    assert sources.eval_split(data) == 'validation' and len(sources.open_source(data, 'validation')) == 1


def test_linked_folders_and_names_of_any_bytes_are_read(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'videos').mkdir()
    video_file.write_mp4(tmp_path / 'elsewhere' / 'a.mp4', gray(3), 8)
    (tmp_path / 'videos' / 'linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'videos' / 'loop').symlink_to(tmp_path / 'videos')
    odd = os.fsdecode(b'\xe9t\xe9.mp4')
    assert folders.walk(tmp_path / 'videos', folders.SUFFIXES) == ['linked/a.mp4']
    shutil.copy(tmp_path / 'elsewhere' / 'a.mp4', tmp_path / 'videos' / odd)
    assert splits.hashed_split(odd) in splits.SPLITS
    outcomes = folders.index(tmp_path / 'videos', folders.walk(tmp_path / 'videos', folders.SUFFIXES))
    assert set(outcomes) == {'linked/a.mp4', odd}


@pytest.mark.parametrize('code', [errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_a_refusal_that_may_pass_is_not_remembered(folder, monkeypatch, code):
    data, original, count_frames = one_split(folder), av.open, video_file.count_frames

    def denied(name, **options):
        if name.endswith('b.mp4'):
            raise av.error.OSError(code, 'no luck', name)
        return original(name, **options)

    monkeypatch.setattr(av, 'open', denied)
    assert 'train/b.mp4' in dict(sources.open_source(data, 'train').skipped)
    monkeypatch.setattr(av, 'open', original)
    probed = []
    monkeypatch.setattr(video_file, 'count_frames', lambda path: probed.append(path.name) or count_frames(path))
    assert 'train/b.mp4' not in dict(sources.open_source(data, 'train').skipped)
    assert probed == ['b.mp4']


def test_a_small_folder_is_decoded_once_and_a_large_one_is_told_to_prepare(folder, monkeypatch):
    data, decoded = one_split(folder), []
    original = video_file.read_frames
    monkeypatch.setattr(video_file, 'read_frames', lambda *args: decoded.append(args) or original(*args))
    source = sources.open_source(data, 'train')
    expected = original(folder / 'train' / 'c.gif', [3, 1], 16, 16)
    np.testing.assert_array_equal(source[1].read([3, 1]), expected)
    np.testing.assert_array_equal(source[1].read([24, 0])[1], original(folder / 'train' / 'c.gif', [0], 16, 16)[0])
    assert len(decoded) == 1
    told = []
    monkeypatch.setattr(folders, 'MAX_CACHE_BYTES', 1000)
    monkeypatch.setattr(splits, 'warn_once', told.append)
    source = sources.open_source(data, 'train')
    np.testing.assert_array_equal(source[1].read([3, 1]), expected)
    assert len(told) == 1 and 'launch.prepare_data' in told[0] and 'clips/s' in told[0]
