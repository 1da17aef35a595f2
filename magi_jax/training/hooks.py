"""What happens on a schedule beside the optimizer steps: validation, preview videos, export of a finished tokenizer."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import Config
from magi_jax.data.pipeline import eval_batches, train_batches
from magi_jax.objectives.api import clip_shape
from magi_jax.sampling.video import VideoSampler, sample_clips
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.folder import save_tokenizer
from magi_jax.tokenizers.pixels import to_float, to_uint8
from magi_jax.tokenizers.statistics import measure_statistics

STATISTICS_BATCHES = 64
PREVIEW_CLIPS = 4


def validation_batches(config: Config) -> list[dict[str, np.ndarray]]:
    """The fixed batches [B, T, H, W, 3] that validation runs on at every call; a part batch at the end is left out."""
    size = config.data.batch_size
    count = config.train.eval_batches * size
    batches = eval_batches(config.data, config.data.eval_split, config.data.frames, count, size)
    batches = [{name: batch[name] for name in ('video', 'interval', 'example')} for batch in batches]
    return [batch for batch in batches if len(batch['example']) == size] or batches[:1]


def mean_metrics(metrics: list[dict[str, jax.Array]], prefix: str) -> dict[str, float]:
    """Averages metrics of equal batches and puts `prefix` before their names."""
    host = jax.device_get(metrics)
    return {f'{prefix}{name}': float(np.mean([entry[name] for entry in host])) for name in host[0]}


def preview(
    config: Config, params: Any, tokenizer: Tokenizer | None, video: np.ndarray, interval: np.ndarray
) -> np.ndarray:
    """Real clips above the model's version of them: uint8 [T, 2H, B*W, 3].

    Reconstructions for an autoencoder; for a generator, continuations of each clip's first frame.

    Args:
      config: of the run.
      params: EMA parameters.
      tokenizer: of a generator.
      video: uint8 [B, T, H, W, 3].
      interval: int32 [B].
    """
    if config.objective == 'autoencoder':
        made = _reconstruct(trained_tokenizer(config, params), video)
    else:
        sampler = VideoSampler(config, clip_shape(config, tokenizer))
        made = sample_clips(sampler, params, tokenizer, video[:, :1], video.shape[1], interval, seed=config.seed)
    both = np.concatenate([video, np.asarray(made)], axis=2)
    return np.concatenate(list(both), axis=2)


def trained_tokenizer(config: Config, params: Any) -> Tokenizer:
    """The autoencoder being trained, with latent statistics 0, 1."""
    channels = config.tokenizer.channels
    return Tokenizer(params, jnp.zeros(channels), jnp.ones(channels), dataclasses.replace(config.tokenizer, path=''))


def export_tokenizer(config: Config, params: Any, folder: Path) -> Tokenizer:
    """Measures the latent statistics of a finished autoencoder on training clips and writes its folder."""
    tokenizer = trained_tokenizer(config, jax.device_get(params))
    batches = train_batches(config.data, config.seed)
    videos = (batch['video'] for batch in itertools.islice(batches, STATISTICS_BATCHES))
    mean, std = measure_statistics(tokenizer, videos)
    batches.close()
    tokenizer = tokenizer.replace(latent_mean=jnp.asarray(mean), latent_std=jnp.asarray(std))
    provenance = {
        'dataset': config.data.source,
        'split': config.data.train_split,
        'clips': STATISTICS_BATCHES * config.data.batch_size,
        'seed': config.seed,
    }
    save_tokenizer(tokenizer, folder, provenance)
    return tokenizer


@jax.jit
def _reconstruct(tokenizer: Tokenizer, video: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.encode(to_float(video), None)))
