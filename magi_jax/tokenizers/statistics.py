"""Mean and standard deviation of a tokenizer's latents, which normalise them for the generator."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.pixels import to_float


@jax.jit
def _moments(tokenizer: Tokenizer, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, log_variance = tokenizer.moments(to_float(video))
    return mean, jnp.exp(log_variance)


def measure_statistics(tokenizer: Tokenizer, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and std of posterior samples for each channel, over all latents of the videos.

    No sample is drawn. The variance of samples equals the variance of posterior means plus the mean posterior variance,
    so the result is exact and needs no key. Sums run in float64.

    Args:
      tokenizer: its own statistics are ignored.
      batches: videos [B, T, H, W, 3], uint8, or float in [-1, 1]; equal shapes compile once.

    Returns:
      mean and std, float32 [c].

    Raises:
      ValueError: there is no video, or a channel is constant or not finite (an untrained or broken autoencoder).
    """
    count = 0
    total, squares = np.zeros(tokenizer.config.channels), np.zeros(tokenizer.config.channels)
    for video in batches:
        mean, variance = (np.asarray(x, np.float64) for x in _moments(tokenizer, video))
        mean, variance = (rearrange(x, 'B T h w c -> (B T h w) c') for x in (mean, variance))
        count += len(mean)
        total += mean.sum(0)
        squares += (mean**2 + variance).sum(0)
    if not count:
        raise ValueError('latent statistics need at least one video: the data source gave none')
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    bad = [channel for channel, value in enumerate(std) if not (np.isfinite(value) and value > 1e-6)]
    if bad:
        raise ValueError(f'latent channels {bad} are constant or not finite: train the autoencoder longer')
    return mean.astype(np.float32), std.astype(np.float32)
