import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import TokenizerConfig
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.pixels import to_float
from magi_jax.tokenizers.statistics import measure_statistics


def _batches():
    rng = np.random.default_rng(0)
    return [rng.integers(0, high, (clips, 2, 32, 32, 3), np.uint8) for clips, high in [(7, 256), (7, 90), (3, 256)]]


def test_samples_get_mean_zero_and_std_one_over_the_data_used():
    tokenizer = create_tokenizer(TokenizerConfig(width=16, encoder_blocks=0), jax.random.key(0), 32, 32)
    mean, std = measure_statistics(tokenizer, _batches())
    tokenizer = tokenizer.replace(latent_mean=jnp.asarray(mean), latent_std=jnp.asarray(std))
    encode = jax.jit(lambda video, noise: tokenizer.encode(to_float(video), noise))
    shape = tokenizer.latent_shape(2, 32, 32)
    noise = [jax.random.normal(jax.random.key(j), (10, 7, *shape)) for j in range(3)]
    draws = [encode(video, draw[: len(video)]) for video, each in zip(_batches(), noise) for draw in each]
    latents = np.concatenate([np.reshape(x, (-1, 4)) for x in draws])
    np.testing.assert_allclose(latents.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(latents.std(0), 1, atol=0.05)


def test_statistics_of_exact_latents_are_those_of_the_pixels():
    tokenizer = create_tokenizer(TokenizerConfig(kind='identity', channels=12, downsample=2), jax.random.key(0), 8, 8)
    mean, std = measure_statistics(tokenizer, iter(_batches()))
    videos = [np.asarray(to_float(video), np.float64) for video in _batches()]
    pixels = np.concatenate([video[..., ::2, 1::2, 2].ravel() for video in videos])
    np.testing.assert_allclose((mean[5], std[5]), (pixels.mean(), pixels.std()), rtol=1e-6)


def test_no_data_and_constant_latents_are_refused():
    tokenizer = create_tokenizer(TokenizerConfig(kind='identity', channels=12, downsample=2), jax.random.key(0), 8, 8)
    with pytest.raises(ValueError, match='at least one video'):
        measure_statistics(tokenizer, [])
    with pytest.raises(ValueError, match='constant'):
        measure_statistics(tokenizer, [np.full((2, 3, 8, 8, 3), 9, np.uint8)])
