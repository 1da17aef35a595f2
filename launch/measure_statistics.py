"""Measures latent mean and standard deviation of a converted tokenizer, on the training clips of a config.

python -m launch.measure_statistics --config configs/magi_ucf101.py:cosmos [--clips 1024]

Tokenizers without a published scale need this before training. The values of each channel, with their provenance, are
written to the folder tokenizer.path.
"""

from collections.abc import Iterator

import numpy as np
from absl import flags
from tqdm import tqdm

from magi_jax.training.latent_scale import measure_scale

from . import console
from .config_flag import define_config

CONFIG = define_config()
CLIPS = flags.DEFINE_integer('clips', 1024, 'number of training clips, rounded up to full batches', lower_bound=1)


def main() -> None:
    """Measure the statistics, write them to the tokenizer folder and print them."""
    config = console.read_config(CONFIG)
    mean, std = measure_scale(config, CLIPS.value, _bar)
    numbers = ', '.join(f'{name} {np.array2string(x, precision=4)}' for name, x in (('mean', mean), ('std', std)))
    print(f'{config.tokenizer.path}: {numbers}')


def _bar(videos: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
    return tqdm(videos, total=total, unit='batch', dynamic_ncols=True)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    console.run(main)
