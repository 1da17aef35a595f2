import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.tokenizers.patches import patchify, unpatchify


@pytest.mark.parametrize('patch', [1, 2, 3])
def test_unpatchify_inverts_patchify(patch):
    latents = np.random.default_rng(0).normal(size=(2, 3, 5 * patch, 7 * patch, 11)).astype(np.float32)
    tokens = patchify(jnp.asarray(latents), patch)
    assert tokens.shape == (2, 3, 35, patch * patch * 11)
    np.testing.assert_array_equal(unpatchify(tokens, patch, 5 * patch), latents)


def test_tokens_run_row_by_row_and_hold_patch_row_patch_column_channel():
    rows, columns, channels = np.meshgrid(np.arange(4), np.arange(6), np.arange(2), indexing='ij')
    latents = jnp.asarray((100 * rows + 10 * columns + channels)[None, None])
    tokens = patchify(latents, 2)
    np.testing.assert_array_equal(tokens[0, 0, 1], [20, 21, 30, 31, 120, 121, 130, 131])
    np.testing.assert_array_equal(tokens[0, 0, 3, 0], 200)


def test_a_grid_that_patches_do_not_fill_is_named():
    with pytest.raises(ValueError, match='5x6 cannot be cut into patches of 2x2'):
        patchify(jnp.zeros((1, 1, 5, 6, 4)), 2)
    with pytest.raises(ValueError, match='7 tokens'):
        unpatchify(jnp.zeros((1, 1, 7, 16)), 2, 4)
