import jax
import numpy as np
import pytest

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers import cosmos, haar


def test_wavelets_are_undone_exactly_enough():
    video = np.random.default_rng(0).uniform(-1, 1, (2, 9, 8, 12, 3)).astype(np.float32)
    patches = jax.jit(haar.patch)(video)
    assert patches.shape == (2, 3, 2, 3, 192)
    np.testing.assert_allclose(jax.jit(haar.unpatch)(patches), video, atol=1e-6)
    # The lowest frequencies are means; the first cube is of the first frame alone.
    np.testing.assert_allclose(patches[0, 0, 0, 1, :3], video[0, 0, :4, 4:8].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(patches[1, 2, 1, 0, :3], video[1, 5:9, 4:8, :4].mean((0, 1, 2)), atol=1e-6)


def test_another_downsample_is_refused():
    with pytest.raises(ConfigError, match='tokenizer.downsample = 16, but cosmos_cv8x8x8 has 8'):
        cosmos.build(TokenizerConfig(kind='cosmos_cv8x8x8', downsample=16), np.float32)
