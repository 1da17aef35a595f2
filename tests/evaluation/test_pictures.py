"""Layouts: every pixel of every clip is where it should be, and every border says what its frame is."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from magi_jax.evaluation import pictures


def clips(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 7, 11, 3), dtype=np.uint8)


def test_side_by_side():
    real, generated = clips(0), clips(1)
    grid = pictures.side_by_side(real, generated, context=2, columns=3)
    cell_height, cell_width = 7 + 4 + 4, 2 * (11 + 4) + 4
    assert grid.shape == (5, 2 * cell_height + 4, 3 * cell_width + 4, 3) and grid.dtype == np.uint8
    for clip in range(6):
        row, column = divmod(clip, 3)
        cell = grid[:, 2 + row * cell_height :, 2 + column * cell_width :][:, :cell_height, :cell_width]
        for left, video, colour in (2, real, pictures.REAL), (17, generated, pictures.GENERATED):
            framed = cell[:, 2:13, left : left + 15]
            np.testing.assert_array_equal(framed[:, 2:-2, 2:-2], video[clip])
            assert (framed[:2, 0] == pictures.GIVEN).all() and (framed[:2, :, -1] == pictures.GIVEN).all()
            assert (framed[2:, 0] == colour).all() and (framed[2:, :, -1] == colour).all()
    assert (grid[:, :4] == pictures.PANEL).all() and (grid[:, :, -4:] == pictures.PANEL).all()


def test_side_by_side_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='rows of 4'):
        pictures.side_by_side(clips(0), clips(1), 2, columns=4)
    with pytest.raises(ValueError, match='beside'):
        pictures.side_by_side(clips(0), clips(1)[:, 1:], 2)


def test_enlarge():
    video = clips(0)
    large = pictures.enlarge(video, 3)
    assert large.shape == (6, 5, 21, 33, 3)
    for dy in range(3):
        np.testing.assert_array_equal(large[..., dy::3, 2 - dy :: 3, :], video)


def test_animation_is_lossless_and_plays_for_ever():
    video = clips(0)[0]
    kind, content = pictures.animation_uri(video, fps=8).split(';base64,')
    assert kind == 'data:image/webp'
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.n_frames == 5 and image.info['loop'] == 0
    for number, frame in enumerate(video):
        image.seek(number)
        np.testing.assert_array_equal(np.asarray(image.convert('RGB')), frame)
        assert image.info['duration'] == (1000 if number == 4 else 125)
