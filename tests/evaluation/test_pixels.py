"""PSNR by hand, PSNR and SSIM by scikit-image (fixtures/make_pixels.py); baselines look at the context only."""

import json
import pathlib

import numpy as np
import pytest

from magi_jax.evaluation import pixels
from tests.evaluation.frames import frame_pairs

STORED = json.loads((pathlib.Path(__file__).parents[1] / 'fixtures' / 'pixels.json').read_text())


def test_psnr_by_hand():
    reference = np.full((2, 3, 5, 7, 3), 100, np.uint8)
    video = reference.copy()
    video[0, 1] = 110  # mean square 100; also must not wrap round below 0
    video[1, 2] = 99
    expected = np.full((2, 3), pixels.MAX_PSNR)
    expected[0, 1] = 10 * np.log10(255**2 / 100)
    expected[1, 2] = 10 * np.log10(255**2)
    np.testing.assert_allclose(pixels.psnr(video, reference), expected, rtol=1e-6)
    np.testing.assert_allclose(pixels.psnr(reference, video), expected, rtol=1e-6)


def test_psnr_is_that_of_scikit_image():
    np.testing.assert_allclose(pixels.psnr(*frame_pairs()), STORED['psnr'], rtol=1e-6)


def test_ssim_is_that_of_scikit_image(monkeypatch):
    monkeypatch.setattr(pixels, 'FRAMES_AT_ONCE', 4)
    np.testing.assert_allclose(pixels.ssim(*frame_pairs()), STORED['ssim'], rtol=2e-6)


@pytest.mark.parametrize('measure', [pixels.psnr, pixels.ssim])
def test_what_would_be_misjudged_silently_is_refused(measure):
    video = np.zeros((3, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match='uint8'):
        measure(video.astype(np.float32), video.astype(np.float32))
    with pytest.raises(ValueError, match=r'\[1, 16, 16, 3\]'):
        measure(video, video[:1])


def test_repeat_last_context():
    context = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7, 3), dtype=np.uint8)
    result = pixels.repeat_last_context(context, 11)
    assert result.shape == (2, 11, 5, 7, 3) and result.dtype == np.uint8
    assert (result == context[:, 2:]).all()


def test_plain_background_is_the_median_of_each_clip():
    context = np.zeros((2, 3, 5, 7, 3), np.uint8)
    context[1] = (10, 200, 30)
    context[:, :, :2, :3] = 255  # an object on less than half of the frame
    result = pixels.plain_background(context, 11)
    assert result.shape == (2, 11, 5, 7, 3) and result.dtype == np.uint8
    assert not result[0].any() and (result[1] == (10, 200, 30)).all()
