"""launch.prepare_data: a wild folder, kills, several hosts, a full disk, and training on the result."""

import itertools
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import pipeline, prepared, sources
from magi_jax.data.preparation import dataset, plans, public, shards
from magi_jax.data.preparation.reencode import Settings
from tests.data import video_kinds
from tests.launch.commands import ROOT, module, run

SETTINGS = Settings(height=32, width=32, videos_per_shard=3)
FLAGS = ['--height=32', '--width=32', '--videos_per_shard=3', '--processes=1']


@pytest.fixture(scope='module')
def wild(tmp_path_factory):
    """A CSV file of 45 rows, 17 of them of no use, in three splits."""
    root = tmp_path_factory.mktemp('wild')
    reasons = {}
    rows = ['path,label,split']
    for number, (name, (content, _)) in enumerate(video_kinds.good_files().items()):
        (root / name).write_bytes(content)
        rows.append(f'{name},{"ab"[number % 2]},{("train", "train", "val")[number % 3]}')
    for name, (content, reason) in video_kinds.broken_files().items():
        (root / name).write_bytes(content)
        rows.append(f'{name},a,train')
        reasons[name] = reason
    (root / 'folder.mp4').mkdir()
    rows += ['folder.mp4,b,train', 'gone.mp4,b,train', 'h264.mp4,a,test', 'mpeg4.avi,b,test']
    reasons |= {
        'folder.mp4': 'not_a_file',
        'gone.mp4': 'missing',
        'h264.mp4': 'duplicate_id',
        'mpeg4.avi': 'duplicate_id',
    }
    (root / 'list.csv').write_text('\n'.join([*rows, 'vp8.webm,b,train', '']))
    return root / 'list.csv', len(rows), reasons | {'vp8.webm': 'duplicate_id'}


@pytest.fixture(scope='module')
def finished(wild, tmp_path_factory):
    """The wild folder prepared in one go, in this process."""
    folder = tmp_path_factory.mktemp('finished')
    assert prepare_here(wild, folder) == 'wild'
    return folder


def prepare_here(wild, data_dir, part=0, parts=1, merge=True):
    listing = public.list_dataset('wild', str(wild[0]))
    folder, plan = dataset.make_plan('wild', str(data_dir), listing, SETTINGS)
    todo = shards.make_shards('wild', folder, listing, SETTINGS)[part::parts]
    for _ in dataset.prepare([shard for shard in todo if not shard.is_done()], plan, listing.root, 1, 60):
        pass
    if merge:
        assert not dataset.merge('wild', str(data_dir), dataset.Limits(0.5, 0.1)).over_limit
    return 'wild'


def files_of(folder):
    """{name: content} but for locks."""
    paths = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.lock']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_same(folder, other):
    left, right = files_of(folder), files_of(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def test_every_row_is_accounted_for(wild, finished):
    _, rows, reasons = wild
    folder = prepared.dataset_folder('wild', str(finished))
    skipped = prepared.read_skipped(folder)
    assert {skip['path']: skip['reason'] for skip in skipped} == reasons and all(skip['detail'] for skip in skipped)
    summary = prepared.read_summary('wild', str(finished))
    good = video_kinds.good_files()
    assert summary['rows'] == rows == len(good) + len(reasons) >= 25 and len(set(reasons.values())) >= 10
    assert sum(summary['prepared'].values()) == len(good) and sum(summary['skipped'].values()) == len(reasons)
    assert list(dataset.check('wild', str(finished), 1)) == [[]] * len(list(folder.glob('*.array_record-*')))


def test_tfds_reads_it_by_name(finished):
    source = tfds.data_source('wild', data_dir=finished, split='train')
    example = next(example for example in source if example['video_id'] == b'h264.mp4')
    assert example['num_frames'] == len(example['packet_sizes']) == 24 and example['fps'] == 12
    assert sum(example['packet_sizes']) == len(example['video'])
    labels = tfds.builder('wild', data_dir=finished).info.features['label']
    assert labels.names == ['a', 'b'] and example['label'] == 0


def test_one_epoch_through_the_training_pipeline_loses_nothing(finished, monkeypatch):
    data = DataConfig(source='wild', path=str(finished), height=32, width=32, frames=12, batch_size=1, threads=0)
    expected = {name for number, name in enumerate(video_kinds.good_files()) if number % 3 < 2}
    seen = []
    original = sources.PreparedSource.__getitem__

    def spy(self, index):
        video = original(self, index)
        seen.append(video.video_id)
        return video

    monkeypatch.setattr(sources.PreparedSource, '__getitem__', spy)
    batches = pipeline.train_batches(data, 0)
    for batch in itertools.islice(batches, len(expected)):
        assert batch['video'].shape == (1, 12, 32, 32, 3) and batch['video'].std() > 5
    batches.close()
    assert sorted(seen) == sorted(expected)
    source = sources.open_source(data, 'train')
    assert source.lengths.tolist() == [source[i].num_frames for i in range(len(source))]
    half = sources.open_source(data, 'train[50%:]+validation[:3]')
    assert half.lengths.tolist() == [half[i].num_frames for i in range(len(half))]
    assert dict(source.skipped)['empty.mp4'] == 'empty: the file is empty (0 bytes)'


def test_frames_are_those_of_the_file(finished):
    data = DataConfig(source='wild', path=str(finished), height=32, width=32, frames=12)
    source = sources.open_source(data, 'train+validation')
    video = next(video for video in map(source.__getitem__, range(len(source))) if video.video_id == 'h264.mkv')
    clip = video.read(range(0, 24, 5)).astype(int)
    columns = [np.argwhere(image[..., 0] - image[..., 2] > 70).mean(0)[1] for image in clip]
    # The square's left edge goes from 0 to 48 of 64 pixels; scaled to 43 wide, the middle 32 are kept.
    np.testing.assert_allclose(columns[1:4], [8 / 1.5 + (48 * t / 23) / 1.5 - 5.3 - 0.5 for t in (5, 10, 15)], atol=1.5)


def test_killed_twice_it_goes_on_to_the_same_bytes(wild, finished, tmp_path, environment):
    command = [
        *module('launch.prepare_data'),
        '--dataset=wild',
        f'--source={wild[0]}',
        f'--data_dir={tmp_path}',
        *FLAGS,
    ]
    reports = prepared.dataset_folder('wild', str(tmp_path)) / 'reports'
    for reached in (2, 5):
        with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(reports.glob('*.json'))) < reached:
                time.sleep(0.005)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(ConfigError, match='is not finished: run the command'):
            prepared.read_summary('wild', str(tmp_path))
    done = {path: path.stat().st_mtime_ns for path in reports.glob('*.json')}
    assert 5 <= len(done) < 15

    result = run(command, environment)
    assert result.returncode == 3 and 'NOT published' in result.stdout, result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert '45 videos = 26 prepared (train 18, validation 8) + 19 skipped' in result.stdout
    assert not dataset.merge('wild', str(tmp_path), dataset.Limits(0.5, 0.1)).over_limit
    assert_same(tmp_path, finished)


def test_check_finds_what_changed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'copy')
    folder = prepared.dataset_folder('wild', str(tmp_path / 'copy'))
    first, second, third, *_ = sorted(folder.glob('*train.array_record-*'))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.unlink()
    report = folder / 'reports/train-00002.json'
    report.write_text(report.read_text().replace('"num_frames": 2', '"num_frames": 3'))
    with pytest.raises(ConfigError, match=r'array_record\S+ is not finished: prepare it'):
        list(dataset.check('wild', str(tmp_path / 'copy'), 1))
    shutil.copy(prepared.dataset_folder('wild', str(finished)) / second.name, second)
    found = [line for lines in dataset.check('wild', str(tmp_path / 'copy'), 1) for line in lines]
    assert f'{first.name}: the checksum does not match the report' in found
    assert any(line.startswith(third.name) and 'is not the video named in the report' in line for line in found)
    assert not any(line.startswith(second.name) for line in found)


def test_two_hosts_make_what_one_makes(wild, finished, tmp_path):
    for part in (0, 1):
        prepare_here(wild, tmp_path / str(part), part, 2, merge=False)
    with pytest.raises(ConfigError, match=r'array_record\S+ is not finished: prepare it'):
        dataset.merge('wild', str(tmp_path / '0'), dataset.Limits())
    for name, content in files_of(tmp_path / '1').items():
        assert not (tmp_path / '0' / name).exists() or name.endswith('plan.json')
        (tmp_path / '0' / name).write_bytes(content)
    assert not dataset.merge('wild', str(tmp_path / '0'), dataset.Limits(0.5, 0.1)).over_limit
    assert_same(tmp_path / '0', finished)


def test_other_settings_or_files_are_refused(wild, finished, tmp_path):
    listing = public.list_dataset('wild', str(wild[0]))
    with pytest.raises(ConfigError, match='height = 32, not 64'):
        dataset.make_plan('wild', str(finished), listing, Settings(height=64, width=32, videos_per_shard=3))
    (tmp_path / 'list.csv').write_text('path,label\nh264.mp4,a\n')
    other = public.list_dataset('wild', str(tmp_path / 'list.csv'))
    with pytest.raises(ConfigError, match='45 videos then, 3 now'):
        dataset.make_plan('wild', str(finished), other, SETTINGS)
    (tmp_path / 'reports').mkdir()
    with plans.exclusive_lock(tmp_path, (0, 1)), pytest.raises(ConfigError, match='another process'):
        plans.exclusive_lock(tmp_path, (0, 1)).__enter__()


def test_a_full_disk_costs_the_shard_at_work_only(wild, finished, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    prepare_here(wild, tmp_path, 0, 4, merge=False)
    before = files_of(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError), match='[Tt]oo large|not written completely'):
            prepare_here(wild, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path) == before
    prepare_here(wild, tmp_path)
    assert_same(tmp_path, finished)


def test_limits():
    reasons = [{'reason': 'missing'}] * 3 + [{'reason': 'corrupt'}]
    plan = {'rows': {'train': 10}, 'skipped': reasons}
    videos = [{'id': n, 'num_frames': 20, 'bytes': 1000} for n in range(10)]
    done = [(shards.Shard(None, 'x', 'train', 0, 1), {'videos': videos})]
    assert dataset._summarize(plan, done, reasons, dataset.Limits(0.1, 0.3)).over_limit == ''
    assert '1 of 14 videos are skipped' in dataset._summarize(plan, done, reasons, dataset.Limits(0.05, 0.3)).over_limit
    assert '3 of 14 videos are missing' in dataset._summarize(plan, done, reasons, dataset.Limits(0.1, 0.2)).over_limit
    with pytest.raises(ConfigError, match='14 rows are not 9 prepared and 4 skipped'):
        dataset._summarize(plan, [(done[0][0], {'videos': videos[1:]})], reasons, dataset.Limits())
    with pytest.raises(ConfigError, match='same id'):
        dataset._summarize(plan, [(done[0][0], {'videos': [*videos[1:], videos[1]]})], reasons, dataset.Limits())
