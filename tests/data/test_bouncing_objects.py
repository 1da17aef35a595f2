"""The embedded data set: same bytes every time, true trajectories, elastic walls."""

import numpy as np
import pytest

from magi_jax.data.builders import bouncing_objects as bouncing


def build(folder, kind):
    config = bouncing.BouncingConfig(name=f'{kind}_tiny', kind=kind, counts={'train': 3, 'test': 2})
    builder = bouncing.BouncingObjects(config=config, data_dir=folder, file_format='array_record')
    builder.download_and_prepare(file_format='array_record')
    return builder


@pytest.mark.parametrize('kind', bouncing.KINDS)
def test_two_builds_are_equal_byte_for_byte(tmp_path, kind):
    first, second = build(tmp_path / 'a', kind), build(tmp_path / 'b', kind)
    files = sorted(path.name for path in first.data_path.glob('*array_record*'))
    assert len(files) == 2
    for name in files:
        assert (first.data_path / name).read_bytes() == (second.data_path / name).read_bytes()


def test_stored_example_is_make_video(tmp_path):
    stored = build(tmp_path, 'shapes').as_data_source('test')[1]
    made = bouncing.make_video('shapes', 'test', 1)
    assert stored.pop('video_id').decode() == made.pop('video_id') == 'shapes/test/00001'
    for key, value in made.items():
        np.testing.assert_array_equal(np.asarray(stored[key]), value, err_msg=key)


def test_splits_and_videos_differ():
    names = [('train', 0), ('train', 1), ('validation', 0), ('test', 0)]
    starts = {bouncing.make_video('shapes', *name)['centres'][0, 0].tobytes() for name in names}
    assert len(starts) == len(names)


@pytest.mark.parametrize('kind', bouncing.KINDS)
@pytest.mark.parametrize('index', range(4))
def test_walls_are_elastic(kind, index):
    video = bouncing.make_video(kind, 'train', index)
    for slot in range(video['count']):
        path = video['centres'][:, slot].astype(np.float64)
        width, height = video['sizes'][slot]
        assert path[:, 0].min() >= width / 2 - 1e-4 and path[:, 0].max() <= 64 - width / 2 + 1e-4
        assert np.ptp(path[:, 1]) <= 64 - height + 1e-4
        steps = np.abs(np.diff(path, axis=0))
        speed = steps.max(axis=0)  # per axis: constant but for the steps during which a wall is hit
        hits = (steps < speed - 1e-4).mean(axis=0)
        assert (hits <= speed / (64 - max(width, height)) + 0.05).all()
        assert 1.0 - 0.01 <= np.hypot(*speed) <= 2.5 + 0.01
    assert np.isnan(video['centres'][:, video['count'] :]).all()


def test_trajectories_match_the_pixels():
    colours = np.array(list(bouncing.PALETTE.values()))
    checked = set()
    for index in range(40):
        video = bouncing.make_video('shapes', 'train', index)
        if video['count'] > 1:
            continue
        checked.add(int(video['labels'][0]))
        weight = video['frames'].sum(axis=-1) / colours[video['colours'][0]].sum()
        total = weight.sum(axis=(1, 2))
        grid = np.arange(64) + 0.5
        x, y = (weight.sum(axis=1) @ grid) / total, (weight.sum(axis=2) @ grid) / total
        error = np.abs(np.stack([x, y], axis=-1) - video['centres'][:, 0])
        assert error.max() < 0.1
    assert checked == {0, 1, 2}


def test_later_objects_hide_earlier_ones_and_colours_are_distinct():
    colours = np.array(list(bouncing.PALETTE.values()))
    overlaps = 0
    for index in range(30):
        video = bouncing.make_video('shapes', 'validation', index)
        count = video['count']
        assert len(set(video['colours'][:count])) == count
        top = video['centres'][:, count - 1].astype(int)
        seen = video['frames'][np.arange(bouncing.FRAMES), top[:, 1], top[:, 0]]
        np.testing.assert_array_equal(seen, np.broadcast_to(colours[video['colours'][count - 1]], seen.shape))
        if count > 1:
            distance = np.linalg.norm(video['centres'][:, 0] - video['centres'][:, count - 1], axis=-1)
            overlaps += int((distance < 5).sum())
    assert overlaps > 0


def test_digits_of_the_splits_are_disjoint():
    ranges = sorted(bouncing.DIGIT_RANGES[split] for split in bouncing.SPLITS)
    assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert ranges[-1][1] <= len(bouncing._digits()[1])


def test_prepare_reuses_what_is_built_and_survives_a_killed_build(tmp_path, monkeypatch):
    monkeypatch.setattr(bouncing.BouncingObjects.BUILDER_CONFIGS[0], 'counts', {'test': 2})
    half = tmp_path / 'bouncing_objects' / 'shapes' / 'incomplete.XYZ_1.0.0'
    half.mkdir(parents=True)
    (half / 'bouncing_objects-test.array_record-00000-of-00001').write_bytes(b'half')
    builder = bouncing.prepare('bouncing_objects/shapes', str(tmp_path))
    stamp = builder.data_path.stat().mtime
    assert len(builder.as_data_source('test')) == 2
    monkeypatch.setattr(bouncing, 'make_video', None)  # building again would fail
    assert bouncing.prepare('bouncing_objects/shapes', str(tmp_path)).data_path.stat().mtime == stamp
    with pytest.raises(ValueError, match='bouncing_objects/shapes, bouncing_objects/digits'):
        bouncing.prepare('bouncing_objects/cats', str(tmp_path))
