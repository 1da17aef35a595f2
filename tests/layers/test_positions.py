import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.layers.positions import read_table, sincos_1d, sincos_2d, stretched_positions


def test_sincos_1d_value_by_value():
    table = sincos_1d(5, 6)
    for position in range(5):
        for k in range(3):
            angle = position / 10000 ** (2 * k / 6)
            assert table[position, k] == pytest.approx(np.sin(angle), rel=1e-6)
            assert table[position, 3 + k] == pytest.approx(np.cos(angle), rel=1e-6)


def test_sincos_2d_spends_half_of_the_width_on_each_axis():
    table = sincos_2d(3, 5, 8).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            np.testing.assert_array_equal(table[row, column, :4], sincos_1d(3, 4)[row])
            np.testing.assert_array_equal(table[row, column, 4:], sincos_1d(5, 4)[column])


def test_table_is_read_exactly_at_whole_positions_and_linearly_between():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2)), jnp.float32)
    np.testing.assert_array_equal(read_table(table, jnp.arange(5.0)), table)
    between = read_table(table, jnp.asarray([0.25, 3.5]))
    np.testing.assert_allclose(between[0], 0.75 * table[0] + 0.25 * table[1], rtol=1e-6)
    np.testing.assert_allclose(between[1], 0.5 * table[3] + 0.5 * table[4], rtol=1e-6)


@pytest.mark.parametrize('frames', [1, 4, 5])
def test_videos_within_the_trained_length_keep_its_positions(frames):
    np.testing.assert_array_equal(stretched_positions(frames, 5), np.arange(frames))


def test_longer_videos_stretch_the_table_with_aligned_corners():
    np.testing.assert_allclose(stretched_positions(9, 5), np.arange(9) / 2)
