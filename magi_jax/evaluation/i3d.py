"""I3D, the Kinetics-400 classifier whose logits the Fréchet video distance compares (Carreira and Zisserman, 2017).

Published numbers use two different variants of it. The original TensorFlow graph has batch norm epsilon 1e-3 and
resizes frames to 224x224 by the bilinear resize of TensorFlow 1. The PyTorch class of VideoGPT has epsilon 1e-5,
resizes the shorter side to 224 by the bilinear resize of torch, and crops the centre. The weights of either do not come
with this code.

Dimension key: B clips, T frames, H rows, W columns, C channels.
"""

import math
import os
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.config import ConfigError
from magi_jax.tokenizers.convert import checkpoint_files, key_map
from magi_jax.tokenizers.convert.key_map import Layout, Report

CLASSES = 400
SIDE = 224  # pixels
MIN_FRAMES = 9  # the last pool needs two frames, which shorter clips do not leave

# For each stage: a pool (window, stride), then blocks with the widths of their branches 1x1; 1x1, 3x3; 1x1, 3x3; 1x1.
STAGES = {
    '3': (((1, 3, 3), (1, 2, 2)), {'b': (64, 96, 128, 16, 32, 32), 'c': (128, 128, 192, 32, 96, 64)}),
    '4': (
        ((3, 3, 3), (2, 2, 2)),
        {
            'b': (192, 96, 208, 16, 48, 64),
            'c': (160, 112, 224, 24, 64, 64),
            'd': (128, 128, 256, 24, 64, 64),
            'e': (112, 144, 288, 32, 64, 64),
            'f': (256, 160, 320, 32, 128, 128),
        },
    ),
    '5': (((2, 2, 2), (2, 2, 2)), {'b': (256, 160, 320, 32, 128, 128), 'c': (384, 192, 384, 48, 128, 128)}),
}

Resize = Literal['tf1', 'torch-crop']


class ConvUnit(nn.Module):
    """A convolution, a batch norm with stored statistics and no scale, and ReLU."""

    features: int
    side: int  # side of the cubic window
    bn_eps: float
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B,T,H,W,C] to [B,T/stride,H/stride,W/stride,features], rounded up."""
        window, strides = (self.side,) * 3, (self.stride,) * 3
        x = nn.Conv(self.features, window, strides, use_bias=False, precision='highest', name='conv3d')(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=self.bn_eps, use_scale=False, name='bn')(x)
        return nn.relu(x)


class InceptionBlock(nn.Module):
    """An Inception block of four parallel branches with `widths` as in STAGES."""

    widths: tuple[int, ...]
    bn_eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B,T,H,W,C] to [B,T,H,W,channels of all branches]."""
        width0, width1a, width1b, width2a, width2b, width3 = self.widths
        branches = [
            ConvUnit(width0, 1, self.bn_eps, name='b0')(x),
            ConvUnit(width1b, 3, self.bn_eps, name='b1b')(ConvUnit(width1a, 1, self.bn_eps, name='b1a')(x)),
            ConvUnit(width2b, 3, self.bn_eps, name='b2b')(ConvUnit(width2a, 1, self.bn_eps, name='b2a')(x)),
            ConvUnit(width3, 1, self.bn_eps, name='b3b')(nn.max_pool(x, (3, 3, 3), padding='SAME')),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network. Its modules have the names of the PyTorch classes."""

    bn_eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map clips float32 [B,T,224,224,3] in [-1, 1] to logits [B,400], averaged over time.

        Raises:
          ConfigError: T < MIN_FRAMES, for which the mean over time slots would be NaN.
        """
        if x.shape[1] < MIN_FRAMES:
            raise ConfigError(f'I3D needs clips of at least {MIN_FRAMES} frames, not {x.shape[1]}: use longer clips')
        x = ConvUnit(64, 7, self.bn_eps, stride=2, name='Conv3d_1a_7x7')(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), 'SAME')
        x = ConvUnit(64, 1, self.bn_eps, name='Conv3d_2b_1x1')(x)
        x = ConvUnit(192, 3, self.bn_eps, name='Conv3d_2c_3x3')(x)
        for stage, ((window, strides), blocks) in STAGES.items():
            x = nn.max_pool(x, window, strides, 'SAME')
            for letter, widths in blocks.items():
                x = InceptionBlock(widths, self.bn_eps, name=f'Mixed_{stage}{letter}')(x)
        x = nn.avg_pool(x, (2, 7, 7))
        return Logits(name='logits')(x).mean(axis=(1, 2, 3))


class Logits(nn.Module):
    """The last layer, in a module of its own as in the published files."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [...,1024] to [...,400]."""
        return nn.Conv(CLASSES, (1, 1, 1), precision='highest', name='conv3d')(x)


def to_input(video: jax.Array, resize: Resize) -> jax.Array:
    """Convert clips uint8 [B,T,H,W,3] to the input of the network, float32 [B,T,224,224,3] in [-1, 1].

    Args:
      video: clips of any size.
      resize: 'tf1' resizes to a square and samples pixel i at i * H / 224. 'torch-crop' resizes the shorter side to
        224 with aligned pixel centres (i + 1/2) and crops the centre square.
    """
    pixels = video.astype(jnp.float32)
    *_, height, width, _ = video.shape
    if resize == 'tf1':
        rows, columns = (_bilinear(size, SIDE, align_centres=False) for size in (height, width))
    else:
        shorter = min(height, width)
        resized = (SIDE if size == shorter else math.ceil(size * (SIDE / shorter)) for size in (height, width))
        rows, columns = (_centre_crop(_bilinear(*sizes, align_centres=True)) for sizes in zip((height, width), resized))
    square = jnp.einsum('bthwc,yh,xw->btyxc', pixels, rows, columns, precision='highest')
    return square * (2 / 255) - 1


def _bilinear(size: int, resized: int, align_centres: bool) -> np.ndarray:
    """Return weights float32 [resized,size] of linear interpolation with edge padding."""
    positions = np.arange(resized) * size / resized
    if align_centres:
        positions = (np.arange(resized) + 0.5) * size / resized - 0.5
    positions = np.clip(positions, 0, size - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size)[None])).astype(np.float32)


def _centre_crop(rows: np.ndarray) -> np.ndarray:
    start = (len(rows) - SIDE) // 2
    return rows[start : start + SIDE]


def read_weights(source: str | os.PathLike) -> tuple[dict, Report]:
    """Read the variables {'params', 'batch_stats'} of an `I3D` from a published file.

    Return them with a report about the keys of the file.

    Args:
      source: path of VideoGPT's state dict (287 keys, 344 with counters), or of a .npz with the 230 variables of the
        TensorFlow graph by name.

    Raises:
      OSError: the file cannot be read.
      ConfigError: the file is damaged, has other keys than the network, or has a scale in batch norm; one line names
        them.
    """
    shapes = jax.eval_shape(I3D(1e-3).init, jax.random.key(0), jnp.zeros((1, MIN_FRAMES, SIDE, SIDE, 3)))
    expected = unflatten_dict(flatten_dict(shapes['params']) | flatten_dict(shapes['batch_stats']))
    weights = checkpoint_files.open_weights(source)
    converted, report = key_map.convert(weights, expected, LAYOUTS, os.fspath(source))
    scaled = [key for key in report.dropped.get(UNSCALED, ()) if (weights[key].read() != 1).any()]
    if scaled:
        names = ', '.join(scaled[:4])
        raise ConfigError(f'{source} is not the published network (scale of {names} is not 1): give another file')
    flat = flatten_dict(converted)
    split = {
        collection: unflatten_dict({path: flat[path] for path in flatten_dict(shapes[collection])})
        for collection in ('params', 'batch_stats')
    }
    return split, report


def _torch_name(name: str) -> str:
    return key_map.substitute(name, [(r'\.bn\.(mean|var)$', r'.bn.running_\1')])


def _tensorflow_name(name: str) -> str:
    name = key_map.substitute(
        name,
        [
            (r'^Mixed_5b\.b2b', 'Mixed_5b/Branch_2/Conv3d_0a_3x3'),  # this name is a mistake in the published graph
            (r'^(Mixed_\w+)\.b([012])a?\b', r'\1/Branch_\2/Conv3d_0a_1x1'),
            (r'^(Mixed_\w+)\.b([12])b', r'\1/Branch_\2/Conv3d_0b_3x3'),
            (r'^(Mixed_\w+)\.b3b', r'\1/Branch_3/Conv3d_0b_1x1'),
            (r'^logits\b', 'Logits/Conv3d_0c_1x1'),
            (r'\.conv3d\.weight$', '/conv_3d/w'),
            (r'\.conv3d\.bias$', '/conv_3d/b'),
            (r'\.bn\.bias$', '/batch_norm/beta'),
            (r'\.bn\.mean$', '/batch_norm/moving_mean'),
            (r'\.bn\.var$', '/batch_norm/moving_variance'),
        ],
    )
    return f'RGB/inception_i3d/{name}'


UNSCALED = 'scale of batch norm, which is 1'
LAYOUTS = (
    Layout(
        'VideoGPT',
        _torch_name,
        ((r'.*\.bn\.weight$', UNSCALED), (r'.*\.bn\.num_batches_tracked$', 'counter of its training')),
    ),
    Layout('TensorFlow graph', _tensorflow_name, channels_last=True),
)
