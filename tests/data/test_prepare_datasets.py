"""Which videos a folder, a CSV file and the trees of public datasets say there are."""

import json
import struct

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from magi_jax.config import ConfigError
from magi_jax.data.preparation import robot_records
from magi_jax.data.preparation.public import list_dataset
from magi_jax.data.preparation.reencode import Prepared, Settings
from magi_jax.data.preparation.rows import prepare_row
from magi_jax.data.stored_video import read


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x')
    return root


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def rows_of(listing):
    return {row.video_id: (row.path, row.split, row.label) for row in listing.rows}


def test_folder_with_splits_and_labels(tmp_path):
    touch(
        tmp_path, 'train/cats/a.mp4', 'train/dogs/deep/b.AVI', 'val/cats/c.webm', 'notes.txt', 'stray.mp4', '.x/d.mp4'
    )
    listing = list_dataset('mine', str(tmp_path))
    assert rows_of(listing) == {
        'train/cats/a.mp4': ('train/cats/a.mp4', 'train', 'cats'),
        'train/dogs/deep/b.AVI': ('train/dogs/deep/b.AVI', 'train', 'dogs'),
        'val/cats/c.webm': ('val/cats/c.webm', 'validation', 'cats'),
    }
    assert listing.labels == ('cats', 'dogs') and listing.ignored == ('notes.txt', 'stray.mp4')


def test_flat_folder_is_split_by_names_and_has_no_labels(tmp_path):
    touch(tmp_path, *(f'{n}.mp4' for n in range(60)), 'sub/61.mp4')
    listing = list_dataset('mine', str(tmp_path))
    assert len(listing) == 61 and listing.labels == ()
    assert {row.split for row in listing.rows} == {'train', 'validation', 'test'}
    touch(tmp_path, 'new.mp4')
    again = list_dataset('mine', str(tmp_path))
    assert rows_of(listing).items() < rows_of(again).items()


def test_the_order_is_a_shuffle_that_depends_on_nothing_else(tmp_path):
    touch(tmp_path, *(f'train/{label}/{n}.mp4' for label in 'abc' for n in range(30)))
    labels = ''.join(row.label for row in list_dataset('mine', str(tmp_path)).rows)
    assert all(4 <= labels[:30].count(label) <= 16 for label in 'abc')
    assert labels == ''.join(row.label for row in list_dataset('mine', str(tmp_path)).rows)


def test_csv(tmp_path):
    table(
        tmp_path / 'list.csv',
        '\ufeffpath,label,split',
        'a.mp4, jump,train',
        'b.mp4,run,val',
        '"odd, name.mp4",run,test',
        'a.mp4,jump,test',
    )
    listing = list_dataset('mine', str(tmp_path / 'list.csv'))
    assert rows_of(listing) == {
        'a.mp4': ('a.mp4', 'train', 'jump'),
        'b.mp4': ('b.mp4', 'validation', 'run'),
        'odd, name.mp4': ('odd, name.mp4', 'test', 'run'),
    }
    (skip,) = listing.skipped
    assert (skip.video_id, skip.split, skip.reason) == ('a.mp4', 'test', 'duplicate_id') and 'train' in skip.detail
    assert len(listing) == 4 and listing.root == str(tmp_path)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (['file,label', 'a.mp4,x'], 'no column `path`'),
        (['path,class', 'a.mp4,x'], "column 'class'"),
        (['path,label', 'a.mp4,x', 'b.mp4,'], '1 of 2 rows have no label'),
        (['path,split', 'a.mp4,my split'], "split 'my split'"),
        (['path,split', ',train'], 'line 2 .* has no path'),
        (['path'], 'no video files'),
    ],
)
def test_csv_mistakes(tmp_path, lines, message):
    table(tmp_path / 'list.csv', *lines)
    with pytest.raises(ConfigError, match=message) as error:
        list_dataset('mine', str(tmp_path / 'list.csv'))
    assert '\n' not in str(error.value)


def ucf(root):
    """The tree of UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip."""
    lists = root / 'ucfTrainTestlist'
    table(lists / 'classInd.txt', '1 ApplyEyeMakeup', '2 HandstandPushups', '3 YoYo')
    table(
        lists / 'trainlist01.txt',
        'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1',
        'HandstandPushups/v_HandStandPushups_g08_c01.avi 2',
        'YoYo/v_YoYo_g08_c01.avi 3',
    )
    # Some copies of the lists and of the files spell this class in two ways.
    table(
        lists / 'testlist01.txt',
        'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi',
        'HandStandPushups/v_HandstandPushups_g01_c01.avi',
    )
    table(lists / 'trainlist02.txt', 'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1')
    table(lists / 'testlist02.txt', 'ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi')
    eye, push = 'UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_', 'UCF-101/HandstandPushups/v_HandStandPushups_'
    return touch(root, f'{eye}g08_c01.avi', f'{eye}g01_c01.avi', f'{push}g08_c01.avi', f'{push}g01_c01.avi')


def test_ucf101(tmp_path):
    listing = list_dataset('ucf101/split1', str(ucf(tmp_path)))
    assert listing.labels == ('ApplyEyeMakeup', 'HandstandPushups', 'YoYo')
    push = 'UCF-101/HandstandPushups/v_HandStandPushups_'
    rows = rows_of(listing)
    assert rows['HandstandPushups/v_HandStandPushups_g08_c01'] == (f'{push}g08_c01.avi', 'train', 'HandstandPushups')
    assert rows['HandstandPushups/v_HandstandPushups_g01_c01'] == (f'{push}g01_c01.avi', 'test', 'HandstandPushups')
    assert len(rows) == 4
    (skip,) = listing.skipped
    assert (skip.path, skip.reason) == ('YoYo/v_YoYo_g08_c01.avi', 'missing')
    second = list_dataset('ucf101/split2', str(tmp_path))
    assert {row.split: row.video_id[-7:] for row in second.rows} == {'train': 'g01_c01', 'test': 'g08_c01'}
    assert len(second.ignored) == 2
    with pytest.raises(ConfigError, match='ucf101/split1, ucf101/split2'):
        list_dataset('ucf101', str(tmp_path))
    (tmp_path / 'ucfTrainTestlist/classInd.txt').unlink()
    with pytest.raises(ConfigError, match='no file classInd.txt'):
        list_dataset('ucf101/split1', str(tmp_path))


@pytest.mark.parametrize('folder', ['train/{label}/', 'clips/', 'k600/train/'])
def test_kinetics600(tmp_path, folder):
    head = 'label,youtube_id,time_start,time_end,split'
    table(
        tmp_path / 'annotations/train.csv',
        head,
        'abseiling,-3B32lodo2M,59,69,train',
        '"baking, cookies",-3b32lodo2m,4,14,train',  # ids that differ in case only are two
        'abseiling,gone0000000,5,15,train',
    )
    table(tmp_path / 'annotations/val.csv', head, 'abseiling,plainid0000,0,10,val')
    touch(tmp_path, folder.format(label='abseiling') + '-3B32lodo2M_000059_000069.mp4')
    touch(tmp_path, folder.format(label='baking, cookies') + '-3b32lodo2m_000004_000014.mkv', 'val/plainid0000.mp4')
    touch(tmp_path, 'train/stranger_000000_000010.mp4')
    listing = list_dataset('kinetics600', str(tmp_path))
    rows = rows_of(listing)
    assert {key: value[1:] for key, value in rows.items()} == {
        '-3B32lodo2M_000059_000069': ('train', 'abseiling'),
        '-3b32lodo2m_000004_000014': ('train', 'baking, cookies'),
        'plainid0000_000000_000010': ('validation', 'abseiling'),
    }
    assert rows['-3b32lodo2m_000004_000014'][0].endswith('-3b32lodo2m_000004_000014.mkv')
    assert [(skip.path, skip.reason) for skip in listing.skipped] == [('gone0000000_000005_000015.mp4', 'missing')]
    assert listing.ignored == ('train/stranger_000000_000010.mp4',) and len(listing) == 4


def test_kinetics_without_annotations_or_clips(tmp_path):
    touch(tmp_path, 'train/a_000000_000010.mp4')
    with pytest.raises(ConfigError, match='no annotations'):
        list_dataset('kinetics600', str(tmp_path))
    table(tmp_path / 'train.csv', 'label,youtube_id,time_start,time_end,split', 'x,b,0,10,train')
    with pytest.raises(ConfigError, match='none of the 1 annotated clips'):
        list_dataset('kinetics600', str(tmp_path))


@pytest.mark.parametrize('name', ['labels/{}.json', 'something-something-v2-{}.json'])
def test_something_something_v2(tmp_path, name):
    def write(what, content):
        touch(tmp_path, name.format(what))
        (tmp_path / name.format(what)).write_text(json.dumps(content))

    write('labels', {'Holding something next to something': '1', 'Approaching something with your camera': '0'})
    template = 'Holding [something] next to [something]'
    write(
        'train', [{'id': '78687', 'label': 'holding potato next to bottle', 'template': template, 'placeholders': []}]
    )
    write('validation', [{'id': '74', 'label': '', 'template': 'Approaching [something] with your camera'}])
    write('test', [{'id': '1420'}, {'id': '1421'}])
    touch(tmp_path, *(f'20bn-something-something-v2/{n}.webm' for n in (78687, 74, 1420)))
    listing = list_dataset('something_something_v2', str(tmp_path))
    assert listing.labels == ('Approaching something with your camera', 'Holding something next to something')
    assert {key: value[1:] for key, value in rows_of(listing).items()} == {
        '78687': ('train', 'Holding something next to something'),
        '74': ('validation', 'Approaching something with your camera'),
        '1420': ('test', None),
    }
    assert [skip.video_id for skip in listing.skipped] == ['1421']


def trajectory(seed):
    """A serialized SequenceExample whose context has the keys of the public files, and its frames of camera aux1."""
    frames = np.random.default_rng(seed).integers(0, 256, (30, 64, 64, 3), np.uint8)
    context = tf_example_pb2.Example()
    for number, frame in enumerate(frames):
        feature = context.features.feature
        feature[f'{number}/image_aux1/encoded'].bytes_list.value.append(frame.tobytes())
        feature[f'{number}/image_main/encoded'].bytes_list.value.append(bytes(64 * 64 * 3))
        feature[f'{number}/action'].float_list.value.extend([0.0] * 4)
    return context.SerializeToString(), frames


def test_bair(tmp_path):
    contents, frames = zip(*(trajectory(seed) for seed in range(3)))
    records = [struct.pack('<QI', len(content), 0) + content + bytes(4) for content in contents]
    for split, parts in (('train', records[:2]), ('test', [records[2]])):
        touch(tmp_path, f'softmotion30_44k/{split}/traj_0_to_255.tfrecords')
        path = tmp_path / f'softmotion30_44k/{split}/traj_0_to_255.tfrecords'
        path.write_bytes(b''.join(parts))
    path.write_bytes(records[2] + records[0][:5000])  # cut off
    listing = list_dataset('bair_robot_pushing', str(tmp_path))
    assert sorted(row.video_id for row in listing.rows) == [
        'test/traj_0_to_255/000',
        'test/traj_0_to_255/001',
        'train/traj_0_to_255/000',
        'train/traj_0_to_255/001',
    ]
    settings = Settings(height=64, width=64, codec='lossless')
    results = {row.video_id: prepare_row((listing.root, row, settings)) for row in listing.rows}
    second = results['train/traj_0_to_255/001']
    assert isinstance(second, Prepared) and second.fps == robot_records.FPS
    np.testing.assert_array_equal(read(second.video, range(30), 64, 64), frames[1])
    assert results['test/traj_0_to_255/001'].reason == 'corrupt'


def test_sources_that_are_not_there(tmp_path):
    for name in ('mine', 'ucf101/split1'):
        with pytest.raises(ConfigError, match='folder'):
            list_dataset(name, str(tmp_path / 'nowhere'))
    with pytest.raises(ConfigError, match='no video files'):
        list_dataset('mine', str(touch(tmp_path, 'a.txt')))
