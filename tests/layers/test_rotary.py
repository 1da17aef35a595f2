import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.layers.linear import rms_norm
from magi_jax.layers.rotary import check_split, rotary_tables, rotate

POSITIONS, ROWS, COLUMNS, SPLIT = np.float32([0, 1, 5]), 3, 7, (6, 4, 2)


def _textbook(x, split, base):
    """x [B, R, N, H, d] of the grid above, pair by pair in float64."""
    out = np.float64(x)
    for r, time in enumerate(POSITIONS):
        for n in range(ROWS * COLUMNS):
            first = 0
            for position, channels in zip((time, n // COLUMNS, n % COLUMNS), split):
                for i in range(channels // 2):
                    low, high = first + i, first + channels // 2 + i
                    angle = position * base ** (-2 * i / channels)
                    a, b = np.float64(x[:, r, n, :, low]), np.float64(x[:, r, n, :, high])
                    out[:, r, n, :, low] = a * np.cos(angle) - b * np.sin(angle)
                    out[:, r, n, :, high] = b * np.cos(angle) + a * np.sin(angle)
                first += channels
    return out


@pytest.mark.parametrize(('split', 'base'), [(SPLIT, 1e4), ((0, 8, 4), 50.0)])
def test_rotation_is_the_textbook_one(split, base):
    x = np.float32(np.random.default_rng(0).normal(size=(2, len(POSITIONS), ROWS * COLUMNS, 3, sum(split))))
    tables = rotary_tables(POSITIONS, ROWS, COLUMNS, split, base)
    assert all(table.shape == (len(POSITIONS), ROWS * COLUMNS, sum(split)) for table in tables)
    np.testing.assert_allclose(rotate(x, *tables, split), _textbook(x, split, base), atol=1e-5)


def test_products_depend_on_distances_alone():
    """Moving all frames by the same time changes no product of a query and a key."""
    q, k = np.float32(np.random.default_rng(0).normal(size=(2, 1, len(POSITIONS), ROWS * COLUMNS, 1, sum(SPLIT))))

    def products(moved):
        tables = rotary_tables(POSITIONS + moved, ROWS, COLUMNS, SPLIT)
        return jnp.einsum('brnhd,bsmhd->brnsmh', rotate(q, *tables, SPLIT), rotate(k, *tables, SPLIT))

    np.testing.assert_allclose(products(0), products(11), atol=1e-4)
    assert np.abs(products(0) - jnp.einsum('brnhd,bsmhd->brnsmh', q, k)).max() > 1


def test_result_has_the_dtype_of_the_input_but_is_computed_in_float32():
    tables = rotary_tables(np.float32([301]), ROWS, COLUMNS)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, ROWS * COLUMNS, 1, 64)), jnp.bfloat16)
    out = rotate(x, *tables)
    assert out.dtype == jnp.bfloat16 and tables[0].dtype == jnp.float32
    np.testing.assert_array_equal(out, rotate(x.astype(jnp.float32), *tables).astype(jnp.bfloat16))


@pytest.mark.parametrize('split', [(32, 16, 8), (31, 17, 16), (72, -16, 8), (32, 32)])
def test_splits_that_do_not_divide_a_head_are_refused(split):
    check_split((32, 16, 16), 64)
    with pytest.raises(ConfigError, match='choose three even numbers that add up to 64'):
        check_split(split, 64)


def test_rms_norm_is_the_textbook_one():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 5)))
    norm = rms_norm('norm')
    params = norm.init(jax.random.key(0), x)
    assert params['params']['scale'].names == ('norm',)
    scale = np.float32([1, 2, -3, 0, 0.5])
    expected = np.float64(x) / np.sqrt(np.mean(np.float64(x) ** 2, axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(norm.apply({'params': {'scale': scale}}, x), expected, atol=1e-5)
    half = norm.apply(params, jnp.full((5,), 3e-4, jnp.bfloat16))  # eps counts here; squares are summed in float32
    assert half.dtype == jnp.float32
    tiny = np.float64(jnp.bfloat16(3e-4))
    np.testing.assert_allclose(half, tiny / np.sqrt(tiny**2 + 1e-6), rtol=1e-5)
