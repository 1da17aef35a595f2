"""The scale of latents whose authors tell none: measured on training clips, kept in the tokenizer's folder."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from magi_jax.config import Config, ConfigError
from magi_jax.data.latents import source_videos_config
from magi_jax.data.pipeline import train_batches
from magi_jax.tokenizers.folder import load_tokenizer, read_statistics, save_tokenizer
from magi_jax.tokenizers.published import PUBLISHED
from magi_jax.tokenizers.statistics import measure_statistics

CLIP = 'height', 'width', 'frames', 'max_interval'  # fields of data that are told with the numbers


def measure_scale(
    config: Config, clips: int, progress: Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Writes mean and std of the latents of training clips, float32 [c] each, into `config.tokenizer.path`.

    Args:
      config: names videos and tokenizer.
      clips: how many, rounded up to whole batches.
      progress: wraps the iterator over batches of videos, told their number.

    Raises:
      ConfigError: the tokenizer's scale is known, from its training or its authors.
    """
    folder, data = Path(config.tokenizer.path), source_videos_config(config.data)
    tokenizer = load_tokenizer(folder)
    published = PUBLISHED.get(tokenizer.config.kind)
    if published is None or published.scale:
        raise ConfigError(f'the scale of the latents of {folder} is known: leave this command out')
    provenance = {name: value for name, value in read_statistics(folder).items() if name not in ('mean', 'std')}
    count = -(-clips // data.batch_size)
    batches = train_batches(data, config.seed)
    mean, std = measure_statistics(
        tokenizer, progress((batch['video'] for batch in itertools.islice(batches, count)), count)
    )
    batches.close()
    measured = {'statistics': 'measured', 'dataset': data.source, 'split': data.train_split, 'seed': config.seed}
    measured |= {'clips': count * data.batch_size, **{name: getattr(data, name) for name in CLIP}}
    tokenizer = tokenizer.replace(latent_mean=jnp.asarray(mean), latent_std=jnp.asarray(std))
    save_tokenizer(tokenizer, folder, provenance | measured)
    return mean, std
