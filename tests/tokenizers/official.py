"""What the official classes say, stored by tests/fixtures/make_tokenizers.py, and the weights they said it with."""

import functools
import json
import math
import pathlib
import zlib

import numpy as np

from magi_jax.config import TokenizerConfig
from magi_jax.tokenizers.convert.checkpoint_files import Weight

PATH = pathlib.Path(__file__).parents[1] / 'fixtures' / 'tokenizers_official.npz'
# Every kind as published, but narrow, and the clip [B, T, H, W, 3] that it is shown.
SMALL = {
    'sd_vae': (TokenizerConfig(kind='sd_vae', channels=4, downsample=8, width=32), (1, 2, 16, 24, 3)),
    'kl16': (TokenizerConfig(kind='kl16', channels=16, downsample=16, width=32), (1, 2, 32, 48, 3)),
    'cosmos_cv8x8x8': (TokenizerConfig(kind='cosmos_cv8x8x8', channels=16, downsample=8, width=8), (1, 9, 16, 24, 3)),
    'cosmos_cv4x8x8': (TokenizerConfig(kind='cosmos_cv4x8x8', channels=16, downsample=8, width=8), (1, 9, 16, 24, 3)),
    'cosmos_cv8x16x16': (
        TokenizerConfig(kind='cosmos_cv8x16x16', channels=16, downsample=16, width=8),
        (1, 9, 32, 48, 3),
    ),
    'omni': (TokenizerConfig(kind='omni', channels=8, downsample=8, width=64), (2, 5, 64, 64, 3)),
}
THINNED = {'omni': 3}  # only every third row and column of its video is stored


@functools.cache
def draw(name, shape):
    """A weight from its name: no fixture need hold it. Nothing is 0 or 1, so that nothing left out goes unseen."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) > 1:
        return noise / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(not name.endswith('bias')) + np.float32(0.1) * noise


def clip(kind):
    return np.random.default_rng(7).uniform(-1, 1, SMALL[kind][1]).astype(np.float32)


@functools.cache
def stored():
    with np.load(PATH) as arrays:
        return dict(arrays)


def keys(listing):
    """{name: shape} of an official class."""
    return {name: tuple(shape) for name, shape in json.loads(stored()[f'{listing}/keys'].tobytes()).items()}


def weights(kind):
    """The weights of the small official class, as a file would hold them."""
    return {name: Weight(shape, lambda n=name, s=shape: draw(n, s)) for name, shape in keys(f'small/{kind}').items()}
