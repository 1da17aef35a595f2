"""The scale of latents for tokenizers published without one: measured on training clips and saved with them."""

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

CLIP_FIELDS = 'height', 'width', 'frames', 'max_interval'  # fields of `data` that are saved with the statistics


def measure_scale(
    config: Config, clips: int, progress: Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and std of the latents of training clips and save them in `config.tokenizer.path`.

    Return both as float32 [c].

    Args:
      config: config with the videos and the tokenizer.
      clips: number of clips, rounded up to whole batches.
      progress: wrapper of an iterator over batches of videos; its second argument is their number.

    Raises:
      ConfigError: the tokenizer's scale is already known from its training or its authors.
    """
    folder, data = Path(config.tokenizer.path), source_videos_config(config.data)
    tokenizer = load_tokenizer(folder)
    published = PUBLISHED.get(tokenizer.config.kind)
    if published is None or published.scale:
        raise ConfigError(f'the scale of the latents of {folder} is already known: skip this command')
    provenance = {name: value for name, value in read_statistics(folder).items() if name not in ('mean', 'std')}
    count = -(-clips // data.batch_size)
    batches = train_batches(data, config.seed)
    mean, std = measure_statistics(
        tokenizer, progress((batch['video'] for batch in itertools.islice(batches, count)), count)
    )
    batches.close()
    measured = {'statistics': 'measured', 'dataset': data.source, 'split': data.train_split, 'seed': config.seed}
    measured |= {'clips': count * data.batch_size, **{name: getattr(data, name) for name in CLIP_FIELDS}}
    tokenizer = tokenizer.replace(latent_mean=jnp.asarray(mean), latent_std=jnp.asarray(std))
    save_tokenizer(tokenizer, folder, provenance | measured)
    return mean, std
