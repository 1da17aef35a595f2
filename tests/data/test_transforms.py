"""Interval draws and flips."""

import numpy as np
import pytest

from magi_jax.data import transforms


@pytest.mark.parametrize(('num_frames', 'largest'), [(16, 1), (30, 1), (31, 2), (101, 6), (400, 7)])
def test_intervals_are_uniform_over_the_feasible_ones(num_frames, largest):
    rng = np.random.default_rng(0)
    draws = [transforms.draw_clip(rng, num_frames, 16, 7) for _ in range(2000)]
    for indices, interval in draws:
        assert len(indices) == 16 and (np.diff(indices) == interval).all()
        assert indices[0] >= 0 and indices[-1] < num_frames
    counts = np.bincount([interval for _, interval in draws], minlength=largest + 1)
    assert counts[0] == 0 and len(counts) == largest + 1
    expected = 2000 / largest
    np.testing.assert_allclose(counts[1:], expected, atol=5 * np.sqrt(expected))


def test_every_start_is_drawn():
    rng = np.random.default_rng(1)
    starts = {int(transforms.draw_clip(rng, 20, 16, 25)[0][0]) for _ in range(200)}
    assert starts == set(range(5))


def test_one_frame_clips_have_any_interval():
    rng = np.random.default_rng(2)
    assert {transforms.draw_clip(rng, 1, 1, 3)[1] for _ in range(100)} == {1, 2, 3}


def test_flip():
    video = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    np.testing.assert_array_equal(transforms.flip(video, False, False), video)
    np.testing.assert_array_equal(transforms.flip(video, True, False)[1, 2, 0], video[1, 2, 4])
    np.testing.assert_array_equal(transforms.flip(video, False, True)[1, 2, 0], video[1, 0, 0])
    np.testing.assert_array_equal(transforms.flip(video, True, True)[0, 0, 0], video[0, 2, 4])
