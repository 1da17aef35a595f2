"""Preparation of sets with files that are harder to read, and names that are not UTF-8: they are published."""

import json
import os

import pytest
import tensorflow_datasets as tfds

from magi_jax.config import DataConfig
from magi_jax.data import pipeline, prepared, sources, splits
from magi_jax.data.preparation import dataset, public, shards, workers
from magi_jax.data.preparation.listing import Listing, Row
from magi_jax.data.preparation.reencode import Settings
from tests.data import odd_videos, video_kinds

SETTINGS = Settings(height=32, width=32)
NOTHING_LOST = dataset.Limits(0.0, 0.0)


def prepare(name, listing, data_dir, limits=NOTHING_LOST):
    """The summary of a dataset, prepared in one process."""
    folder, plan = dataset.make_plan(name, str(data_dir), listing, SETTINGS)
    for _ in dataset.prepare(shards.make_shards(name, folder, listing, SETTINGS), plan, listing.root, 1, 60):
        pass
    return dataset.merge(name, str(data_dir), limits)


def test_ucf101_with_avi_files_without_presentation_times_is_published(tmp_path):
    root, files = tmp_path / 'ucf', odd_videos.without_presentation_times()
    names = [name for name in files if name.endswith('.avi')]
    (root / 'ucfTrainTestlist').mkdir(parents=True)
    (root / 'Archery').mkdir()
    for name in names:
        (root / 'Archery' / f'v_Archery_{name}').write_bytes(files[name][0])
    lists = {'classInd.txt': ['1 Archery'], 'trainlist01.txt': names[2:], 'testlist01.txt': names[:2]}
    for file, lines in lists.items():
        lines = [line if ' ' in line else f'Archery/v_Archery_{line} 1' for line in lines]
        (root / 'ucfTrainTestlist' / file).write_text('\n'.join(lines))
    summary = prepare('ucf101/split1', public.list_dataset('ucf101/split1', str(root)), tmp_path / 'out')
    assert (
        summary.over_limit == '' and summary.skipped == {} and summary.prepared == {'train': len(names) - 2, 'test': 2}
    )
    assert summary.frames == sum(files[name][1] for name in names)
    data = DataConfig(source='ucf101/split1', path=str(tmp_path / 'out'), height=32, width=32, frames=16, batch_size=2)
    assert next(pipeline.train_batches(data, 0))['video'].shape == (2, 16, 32, 32, 3)


def test_names_that_are_not_utf8_are_stored_as_text(tmp_path):
    root = os.fsencode(tmp_path / 'mine')
    content = video_kinds.encode('libx264', 'mp4')
    for folder, name, data in (
        (b'caf\xe9', b'a.mp4', content),
        (b'caf\xe9', b'\xff:b.mp4', content),
        (b'th\xc3\xa9', b'c.mp4', content),
        (b'th\xc3\xa9', b'bad\xe9.mp4', b'no video'),
    ):
        os.makedirs(os.path.join(root, b'train', folder), exist_ok=True)
        with open(os.path.join(root, b'train', folder, name), 'wb') as file:
            file.write(data)
    with open(os.path.join(root, b'note\xe9.txt'), 'wb') as file:
        file.write(b'?')
    listing = public.list_dataset('mine', os.fsdecode(root))
    assert listing.labels == (r'caf\xe9', 'thé') and listing.ignored == (r'note\xe9.txt',)
    summary = prepare('mine', listing, tmp_path / 'out', dataset.Limits(0.5, 0.0))
    assert summary.prepared == {'train': 3} and summary.skipped == {'not_a_video': 1}
    ids = {
        example['video_id'].decode() for example in tfds.data_source('mine', data_dir=tmp_path / 'out', split='train')
    }
    assert ids == {r'train/caf\xe9/a.mp4', r'train/caf\xe9/\xff:b.mp4', 'train/thé/c.mp4'}
    folder = prepared.dataset_folder('mine', str(tmp_path / 'out'))
    (skip,) = prepared.read_skipped(folder)
    assert skip['path'] == skip['video_id'] == r'train/thé/bad\xe9.mp4'
    for path in [*folder.rglob('*.json*'), *folder.rglob('*.txt')]:
        text = path.read_bytes().decode()  # valid UTF-8
        for line in [text] if path.suffix == '.json' else text.splitlines():
            content = json.loads(line) if '.json' in path.name else line
            json.dumps(content, ensure_ascii=False).encode()  # without half characters
    assert all(not found for found in dataset.check('mine', str(tmp_path / 'out'), 1))


def test_a_folder_with_names_that_are_not_utf8_is_read(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(os.path.join(root, b'train'))
    with open(os.path.join(root, b'train', b'caf\xe9:a.mp4'), 'wb') as file:
        file.write(video_kinds.encode('libx264', 'mp4'))
    with open(os.path.join(root, b'train', b'\xe9.mp4'), 'wb') as file:
        file.write(b'no video')
    data = DataConfig(source='video_folder', path=str(tmp_path), height=32, width=32, frames=16)
    source = sources.open_source(data, 'train')
    assert source[0].video_id == r'train/caf\xe9:a.mp4' and source[0].read([3, 5]).shape == (2, 32, 32, 3)
    assert source.skipped[0][0] == r'train/\xe9.mp4'


@pytest.mark.parametrize('name', [b'caf\xe9', b'a'])
def test_split_by_name_takes_bytes(name):
    assert splits.hashed_split(os.fsdecode(name)) in splits.SPLITS


def test_any_exception_of_one_row_is_one_skipped_row(tmp_path):
    (tmp_path / 'a.mp4').write_bytes(video_kinds.encode('libx264', 'mp4'))
    rows = (Row('a', 'a.mp4', 'train'), Row('gone', 'gone.tfrecords', 'train', offset=3))  # which raises OSError
    summary = prepare('mine', Listing(str(tmp_path), rows), tmp_path / 'out', dataset.Limits(0.5, 0.0))
    assert summary.prepared == {'train': 1} and summary.skipped == {'failed': 1}
    (skip,) = prepared.read_skipped(prepared.dataset_folder('mine', str(tmp_path / 'out')))
    assert skip['video_id'] == 'gone' and 'FileNotFoundError' in skip['detail'] and '\n' not in skip['detail']


def test_a_later_run_tries_again_what_was_refused_for_a_passing_reason(tmp_path, monkeypatch):
    content, tried = video_kinds.encode('libx264', 'mp4'), []
    (tmp_path / 'good.mp4').write_bytes(content)
    (tmp_path / 'bad.mp4').write_bytes(b'no video')
    (tmp_path / 'folder.mp4').mkdir()
    names = ('good', 'bad', 'folder', 'missing')
    listing = Listing(str(tmp_path), tuple(Row(name, f'{name}.mp4', 'train') for name in names))

    def run_ordered(function, tasks, *_):
        for task in tasks:
            name = task[1].video_id
            tried.append(name)
            yield workers.WorkerFailure(*failures.pop(name)) if name in failures else function(task)

    monkeypatch.setattr(workers, 'run_ordered', run_ordered)
    failures = {}
    summary = prepare('mine', listing, tmp_path / 'out', dataset.Limits(0.9, 0.9))
    assert summary.skipped == {'missing': 1, 'not_a_file': 1, 'not_a_video': 1}
    (tmp_path / 'missing.mp4').write_bytes(content)
    (tmp_path / 'folder.mp4').rmdir()
    (tmp_path / 'folder.mp4').write_bytes(content)
    tried.clear()
    failures = {'folder': (True, 'gave no result in time')}
    summary = prepare('mine', listing, tmp_path / 'out', dataset.Limits(0.9, 0.9))
    assert tried == ['folder', 'missing'] and summary.skipped == {'not_a_video': 1, 'timed_out': 1}
    for failure in ((False, 'died'), (False, 'ValueError: no luck', True)):
        failures = {'folder': failure}
        prepare('mine', listing, tmp_path / 'out', dataset.Limits(0.9, 0.9))
    tried.clear()
    summary = prepare('mine', listing, tmp_path / 'out', dataset.Limits(0.9, 0.9))
    assert tried == ['folder'] and summary.prepared == {'train': 3} and summary.skipped == {'not_a_video': 1}
    ids = [video['video_id'] for video in tfds.data_source('mine', data_dir=tmp_path / 'out', split='train')]
    assert ids == [b'good', b'folder', b'missing']
