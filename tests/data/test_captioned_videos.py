"""The captioned videos: what the caption says is what moves, and 'test' holds its combinations alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from magi_jax.data import pipeline, sources
from magi_jax.data.builders import captions
from magi_jax.data.builders.drawing import GAP, PALETTE, RADII, SHAPES
from tests.data import tiny_captions

COUNTS = {'train': 6, 'validation': 3, 'test': 4}
TRAIN = [captions.make_video('train', index) for index in range(2 * len(captions.SEEN))]
TEST = [captions.make_video('test', index) for index in range(2 * len(captions.HELD_OUT))]


def words(video):
    """Colour, shape and direction of the moving shape, from the labels."""
    colour, shape = list(PALETTE)[video['colours'][0]], SHAPES[video['labels'][0]]
    return colour, shape, captions.DIRECTIONS[video['direction']]


def test_held_out_combinations_are_in_test_alone():
    every = set(itertools.product(PALETTE, SHAPES, captions.DIRECTIONS))
    assert len(every) == 96 and len(captions.HELD_OUT) == len(set(captions.HELD_OUT)) == 12
    assert set(map(words, TEST)) == set(captions.HELD_OUT) and set(map(words, TRAIN)) == every - set(captions.HELD_OUT)
    for place, values in enumerate((PALETTE, SHAPES, captions.DIRECTIONS)):
        assert {held_out[place] for held_out in captions.HELD_OUT} == set(values)
    pairs = [set(itertools.combinations(enumerate(combination), 2)) for combination in captions.SEEN]
    for combination in captions.HELD_OUT:  # every two words of it are seen together in training
        assert set(itertools.combinations(enumerate(combination), 2)) <= set.union(*pairs)


def test_splits_are_balanced_and_differ():
    counts = [sum(words(video) == combination for video in TRAIN) for combination in captions.SEEN]
    assert counts == [2] * len(captions.SEEN)
    assert {words(captions.make_video('validation', index))[0] for index in range(8)} == set(PALETTE)
    assert 0.4 < np.mean([video['count'] == 2 for video in TRAIN]) < 0.6
    starts = {captions.make_video(split, 3)['centres'][0, 0].tobytes() for split in captions.SPLITS}
    assert len(starts) == 3


def test_caption_says_what_is_seen():
    assert captions.caption('red', 'disc', 'up and left') == 'a red disc moves up and left'
    assert captions.caption('red', 'disc', 'down', ('blue', 'square')) == 'a red disc moves down past a blue square'
    for video in TRAIN + TEST:
        other = None
        if video['count'] == 2:
            other = list(PALETTE)[video['colours'][1]], SHAPES[video['labels'][1]]
            assert video['colours'][1] != video['colours'][0]
        assert video['caption'] == captions.caption(*words(video), other)


def test_the_first_shape_moves_as_said_and_touches_nothing():
    closest = []
    for video in TRAIN + TEST:
        path, size = video['centres'][:, 0].astype(np.float64), video['sizes'][0]
        step = np.diff(path, axis=0)
        assert np.abs(step - step[0]).max() < 1e-3 and 1.49 < np.linalg.norm(step[0]) < 2.51
        said = captions.DIRECTIONS[video['direction']].split(' and ')
        assert (step[0, 0] > 0.5) == ('right' in said) and (step[0, 0] < -0.5) == ('left' in said)
        assert (step[0, 1] > 0.5) == ('down' in said) and (step[0, 1] < -0.5) == ('up' in said)
        assert len(said) == 2 or np.abs(step[0]).min() == 0
        assert np.abs(step[0, 0]) == np.abs(step[0, 1]) or len(said) == 1
        frames = video['frames']
        assert frames[:, [0, -1]].max() == 0 and frames[:, :, [0, -1]].max() == 0  # not even its border, at the walls
        assert path.min() > size.min() / 2 - 3 and path.max() < 64 - size.min() / 2 + 3
        if video['count'] == 2:
            rest = video['centres'][:, 1]
            assert (rest == rest[0]).all()
            radii = sum(RADII[SHAPES[label]] for label in video['labels'][:2])
            closest.append(np.linalg.norm(path - rest, axis=1).min() - radii)
    assert len(closest) > 50 and min(closest) >= GAP - 1e-3


def test_colours_are_where_the_labels_say():
    palette = np.array(list(PALETTE.values()))
    for video in TRAIN[:20]:
        for slot in range(video['count']):
            at = video['centres'][:, slot].astype(int)
            seen = video['frames'][np.arange(captions.FRAMES), at[:, 1], at[:, 0]]
            np.testing.assert_array_equal(seen, np.broadcast_to(palette[video['colours'][slot]], seen.shape))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return dataclasses.replace(tiny_captions.build(tmp_path_factory.mktemp('captions'), **COUNTS), frames=16)


def test_stored_example_is_make_video(data):
    video = sources.open_source(data, 'test')[3]
    made = captions.make_video('test', 3)
    assert video.video_id == 'captions/test/00003' and video.num_frames == 16
    np.testing.assert_array_equal(video.read(range(16)), made.pop('frames'))
    assert isinstance(video.labels['caption'], str) and video.labels.keys() == made.keys() - {'video_id'}
    for key, value in video.labels.items():
        np.testing.assert_array_equal(value, made[key], err_msg=key)


def test_batches_hold_captions_in_evaluation_alone(data):
    batches = pipeline.train_batches(data, 0)
    assert {value.dtype.kind for value in next(batches).values()} <= set('uif')
    batches.close()
    batch = pipeline.validation_clips(data).read([0, 2])
    assert batch['video'].shape == (2, 16, 64, 64, 3) and batch['direction'].shape == (2,)
    assert batch['caption'].tolist() == [captions.make_video('validation', index)['caption'] for index in (0, 2)]
