"""Weights and clips for I3D that this project and tests/fixtures/make_i3d.py draw alike, and what the latter stored."""

import functools
import json
import math
import pathlib
import zlib

import numpy as np

from magi_jax.tokenizers.convert.checkpoint_files import Weight

PATH = pathlib.Path(__file__).parents[1] / 'fixtures' / 'i3d.npz'
EPSILONS = (1e-3, 1e-5)
STEP = 16  # of the stored input's rows and columns


@functools.cache
def draw(name, shape):
    """A weight from its name. Variances are small enough for the epsilon to show."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('running_var'):
        return rng.uniform(0.02, 0.3, shape).astype(np.float32)
    if name.endswith(('bn.weight', 'num_batches_tracked')):
        return np.ones(shape, np.float32)
    noise = rng.standard_normal(shape, np.float32)
    return noise * np.float32(0.5 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1)


def video():
    """uint8 [1,9,60,50,3], smooth enough for a resize to be more than noise."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (1, 9, 12, 10, 3), dtype=np.uint8)
    return coarse.repeat(5, axis=2).repeat(5, axis=3)


@functools.cache
def stored():
    with np.load(PATH) as arrays:
        return dict(arrays)


def torch_weights():
    """The state dict of the PyTorch class, {name: Weight}."""
    keys = json.loads(stored()['keys'].tobytes())
    return {name: Weight(tuple(shape), lambda n=name, s=tuple(shape): draw(n, s)) for name, shape in keys.items()}
