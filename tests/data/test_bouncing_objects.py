"""The embedded data set: same bytes every time, true trajectories, elastic walls and shapes."""

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


@pytest.mark.parametrize('kind', bouncing.KINDS)
def test_a_shorter_video_is_the_beginning_of_the_whole(kind):
    short, whole = (bouncing.make_video(kind, 'test', 2, frames) for frames in (7, bouncing.FRAMES))
    for key in ('frames', 'centres'):
        np.testing.assert_array_equal(short[key], whole[key][:7], err_msg=key)


def test_splits_and_videos_differ():
    names = [('train', 0), ('train', 1), ('validation', 0), ('test', 0)]
    starts = {bouncing.make_video('shapes', *name)['centres'][0, 0].tobytes() for name in names}
    assert len(starts) == len(names)


@pytest.mark.parametrize('kind', bouncing.KINDS)
@pytest.mark.parametrize('index', range(4))
def test_speed_is_kept_and_turns_have_a_reason(kind, index):
    video = bouncing.make_video(kind, 'train', index)
    count = video['count']
    path, size = video['centres'][:, :count].astype(np.float64), video['sizes'][:count]
    assert path[..., 0].min() >= size[:, 0].min() / 2 - 1e-3 and path[..., 0].max() <= 64 - size[:, 0].min() / 2 + 1e-3
    steps = np.diff(path, axis=0)
    lengths = np.linalg.norm(steps, axis=-1)
    speed = np.median(lengths, axis=0)
    assert (speed >= 1.5 - 0.02).all() and (speed <= 2.5 + 0.02).all()
    assert (lengths <= speed + 0.01).all()  # shorter only where it turned on the way
    assert (lengths > speed - 0.01).mean() > 0.7
    turns = np.linalg.norm(np.diff(steps, axis=0), axis=-1) > 0.01  # between frames t and t + 2
    for frame, slot in np.argwhere(turns):
        nearby = path[frame : frame + 3, slot]
        wall = min(nearby.min(), (64 - nearby).min()) < size[slot].max() * 0.6 + 2.5
        others = np.delete(path[frame : frame + 3], slot, axis=1)
        met = kind == 'shapes' and (np.linalg.norm(others - nearby[:, None], axis=-1) < 32).any()
        assert wall or met
    assert np.isnan(video['centres'][:, count:]).all()


def test_shapes_never_come_closer_than_the_gap_and_do_meet():
    closest = []
    for index in range(12):
        video = bouncing.make_video('shapes', 'train', index)
        for i in range(video['count']):
            for j in range(i):
                radii = [bouncing.RADII[bouncing.SHAPES[video['labels'][k]]] for k in (i, j)]
                distance = np.linalg.norm(video['centres'][:, i] - video['centres'][:, j], axis=-1)
                closest.append(distance.min() - sum(radii))
    # Two objects move up to 2.5 / 8 pixel each in a substep, and a third may press from behind.
    assert min(closest) > bouncing.GAP - 1.5 and np.median(closest) < bouncing.GAP + 1


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


def test_every_shape_is_seen_in_its_own_colour():
    colours = np.array(list(bouncing.PALETTE.values()))
    for index in range(10):
        video = bouncing.make_video('shapes', 'validation', index)
        count = video['count']
        assert len(set(video['colours'][:count])) == count
        for slot in range(count):
            at = video['centres'][:, slot].astype(int)
            seen = video['frames'][np.arange(bouncing.FRAMES), at[:, 1], at[:, 0]]
            np.testing.assert_array_equal(seen, np.broadcast_to(colours[video['colours'][slot]], seen.shape))


def test_digits_pass_through_each_other():
    videos = [bouncing.make_video('digits', 'validation', index)['centres'] for index in range(10)]
    assert min(np.linalg.norm(centres[:, 0] - centres[:, 1], axis=-1).min() for centres in videos) < 5


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
