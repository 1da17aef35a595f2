"""Frames that this project and tests/fixtures/make_pixels.py draw alike."""

import numpy as np
from scipy.ndimage import gaussian_filter


def frame_pairs():
    """Two videos uint8 [2,3,40,56,3], the second one noisy, shifted or dark."""
    rng = np.random.default_rng(5)
    smooth = gaussian_filter(rng.uniform(-2, 3, (2, 3, 40, 56, 3)), (0, 0, 2, 2, 0))
    first = np.clip(np.rint(255 * smooth), 0, 255).astype(np.uint8)
    second = first.copy()
    second[:, 0] = np.clip(first[:, 0] + np.rint(rng.normal(0, 20, first[:, 0].shape)), 0, 255)
    second[:, 1] = np.roll(first[:, 1], 2, axis=2)
    second[:, 2] = first[:, 2] // 2
    return first, second
