"""Objects are found where they are, in clean and in spoiled frames; each way to lose one is noticed."""

import numpy as np
import pytest

from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.data.builders import drawing
from magi_jax.evaluation import objects
from tests.evaluation.clips import real_clips, spoil

COLOURS = np.asarray(list(bouncing.PALETTE.values()), np.uint8)
BOXES = {'red': (10, 12), 'blue': (40, 38)}  # top left corners of two squares of side 16


def picture(boxes=BOXES, side=16):
    """One frame [1,1,64,64,3] with squares: real ones have side 16."""
    frame = np.zeros((1, 1, 64, 64, 3), np.uint8)
    for name, (top, left) in boxes.items():
        frame[0, 0, top : top + side, left : left + side] = bouncing.PALETTE[name]
    return frame


def look(frame):
    """Objects found in a frame that should hold a red and a blue square."""
    names = list(bouncing.PALETTE)
    square = bouncing.SHAPES.index('square')
    labels, colours = np.array([[square, square, -1]]), np.array([[names.index('red'), names.index('blue'), -1]])
    return objects.find_objects(frame, labels, colours)


@pytest.fixture(scope='module')
def real():
    return real_clips(12, 24)


@pytest.mark.parametrize('std, blur', [(0, False), (8, False), (8, True)])
def test_real_frames_score_near_perfectly(real, std, blur):
    video, labels = real
    seen = objects.find_objects(spoil(video, std, blur), labels['labels'], labels['colours'])
    present = np.broadcast_to(seen.present[:, None], seen.found.shape)
    clear = present & (seen.hidden < 0.5)
    assert seen.found[present].mean() > 0.98 and seen.found[clear].mean() > 0.999
    assert not seen.found[~present].any()
    right = seen.shape == labels['labels'][:, None]
    assert right[seen.found].mean() > 0.99
    error = np.linalg.norm(seen.centre - labels['centres'], axis=-1)
    assert error[clear].mean() < 0.35 and error[clear].max() < 2.0
    assert (seen.count == seen.present.sum(axis=1)[:, None]).mean() > 0.97
    assert seen.extra.max() < objects.MIN_BODY


def test_hidden_part_is_measured():
    """Of a red square under a blue one, the place is still known."""
    frame = picture({'red': (10, 10), 'blue': (10, 20)})
    seen = look(frame)
    np.testing.assert_allclose(seen.hidden[0, 0, :2], [6 / 16, 0], atol=1e-6)
    np.testing.assert_allclose(seen.centre[0, 0, :2], [(18, 18), (28, 18)], atol=1e-3)
    assert seen.found[0, 0].tolist() == [True, True, False] and seen.count == 2


def test_sound_frame():
    seen = look(picture())
    assert seen.found[0, 0].tolist() == [True, True, False] and seen.count == 2 and seen.extra == 0
    assert seen.shape[0, 0].tolist() == [1, 1, -1]
    np.testing.assert_allclose(seen.centre[0, 0, :2], [(20, 18), (46, 48)], atol=1e-3)
    np.testing.assert_allclose(seen.area[0, 0], [1, 1, 0], atol=1e-6)


def test_a_lost_object_is_noticed():
    seen = look(picture({'red': BOXES['red']}))
    assert seen.found[0, 0].tolist() == [True, False, False] and seen.count == 1
    assert np.isnan(seen.centre[0, 0, 1]).all() and seen.shape[0, 0, 1] == -1


@pytest.mark.parametrize('side', [11, 25])
def test_a_shrunk_or_grown_object_is_not_found(side):
    assert not look(picture({'red': (5, 5), 'blue': (34, 34)}, side)).found.any()


def test_a_faded_object_is_not_found():
    assert not look((picture() * 0.4).astype(np.uint8)).found.any()


def test_a_changed_colour_is_noticed():
    seen = look(picture({'red': BOXES['red'], 'green': BOXES['blue']}))
    assert seen.found[0, 0].tolist() == [True, False, False] and seen.extra >= objects.MIN_BODY


def test_a_washed_out_colour_is_noticed():
    frame = picture()
    frame[0, 0, 40:56, 38:54] = 200
    seen = look(frame)
    assert seen.found[0, 0].tolist() == [True, False, False] and seen.extra >= objects.MIN_BODY


def test_a_second_object_of_the_same_colour_is_counted():
    seen = look(picture() | picture({'red': (40, 2)}))
    assert seen.count == 3


def test_a_body_of_another_colour_is_counted():
    seen = look(picture() | picture({'white': (40, 5)}, side=9))
    assert seen.count == 3 and seen.found[0, 0].tolist() == [True, True, False]


def test_a_changed_shape_is_noticed():
    frame = picture({'blue': BOXES['blue']})
    rows, columns = np.mgrid[:64, :64] + 0.5
    frame[0, 0][np.hypot(rows - 18, columns - 20) <= drawing.DISC_RADIUS + 1] = bouncing.PALETTE['red']
    seen = look(frame)
    assert seen.shape[0, 0].tolist() == [0, 1, -1] and seen.found[0, 0, 0]


def test_pixels_darker_than_a_colour_keep_it():
    classes = objects.classify_pixels((COLOURS * 0.6)[None].astype(np.uint8))
    assert classes[0].tolist() == list(range(len(COLOURS)))
    others = np.array([[(0, 0, 0), (30, 20, 30), (255, 255, 0)]], np.uint8)
    assert objects.classify_pixels(others)[0].tolist() == [objects.BLACK, objects.BLACK, objects.FOREIGN]


def test_data_without_colours_is_refused():
    with pytest.raises(ValueError, match='bouncing_objects/shapes'):
        objects.find_objects(picture(), np.zeros((1, 3), int), np.full((1, 3), -1))
