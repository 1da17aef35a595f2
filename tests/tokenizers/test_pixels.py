"""Pixel ranges."""

import numpy as np

from magi_jax.tokenizers.pixels import to_float, to_uint8


def test_ranges_and_their_inverse():
    levels = np.arange(256, dtype=np.uint8)
    values = to_float(levels)
    assert values.dtype == np.float32 and values[0] == -1.0 and values[-1] == 1.0
    np.testing.assert_array_equal(to_uint8(values), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0], np.float32)), [0, 255])
