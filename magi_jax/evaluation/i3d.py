"""I3D, the Kinetics-400 classifier whose logits the Fréchet video distance compares (Carreira and Zisserman, 2017).

Two readings of it give the published numbers, and they differ: the original TensorFlow graph (batch norm epsilon 1e-3,
frames squashed to 224x224 by TensorFlow 1's bilinear resize), and VideoGPT's PyTorch class (1e-5; shorter side to 224
by torch's bilinear resize, then the centre). Neither set of weights comes with this code.

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
MIN_FRAMES = 9  # with fewer, two frames are not left for the last pool

# Widths of the branches: 1x1; 1x1, 3x3; 1x1, 3x3; pool, 1x1. Before each stage but the first, a pool (window, stride).
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


class Unit(nn.Module):
    """Convolution, batch norm with the stored statistics (it has no scale), ReLU."""

    features: int
    side: int  # of the cubic window
    bn_eps: float
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,T,H,W,C] -> [B,T/stride,H/stride,W/stride,features], rounded up."""
        window, strides = (self.side,) * 3, (self.stride,) * 3
        x = nn.Conv(self.features, window, strides, use_bias=False, precision='highest', name='conv3d')(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=self.bn_eps, use_scale=False, name='bn')(x)
        return nn.relu(x)


class Mixed(nn.Module):
    """Four branches side by side; `widths` as in STAGES."""

    widths: tuple[int, ...]
    bn_eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,T,H,W,C] -> the same with the branches' channels."""
        only, narrow, wide, narrower, wider, pooled = self.widths
        branches = [
            Unit(only, 1, self.bn_eps, name='b0')(x),
            Unit(wide, 3, self.bn_eps, name='b1b')(Unit(narrow, 1, self.bn_eps, name='b1a')(x)),
            Unit(wider, 3, self.bn_eps, name='b2b')(Unit(narrower, 1, self.bn_eps, name='b2a')(x)),
            Unit(pooled, 1, self.bn_eps, name='b3b')(nn.max_pool(x, (3, 3, 3), padding='SAME')),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network; its modules go by the names of the PyTorch classes."""

    bn_eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Clips float32 [B,T,224,224,3] in [-1, 1] -> logits [B,400], averaged over time.

        Raises:
          ConfigError: T < MIN_FRAMES; the mean over no time slot would be NaN.
        """
        if x.shape[1] < MIN_FRAMES:
            raise ConfigError(f'I3D needs clips of at least {MIN_FRAMES} frames, not {x.shape[1]}: use longer clips')
        x = Unit(64, 7, self.bn_eps, stride=2, name='Conv3d_1a_7x7')(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), 'SAME')
        x = Unit(64, 1, self.bn_eps, name='Conv3d_2b_1x1')(x)
        x = Unit(192, 3, self.bn_eps, name='Conv3d_2c_3x3')(x)
        for stage, ((window, strides), blocks) in STAGES.items():
            x = nn.max_pool(x, window, strides, 'SAME')
            for letter, widths in blocks.items():
                x = Mixed(widths, self.bn_eps, name=f'Mixed_{stage}{letter}')(x)
        x = nn.avg_pool(x, (2, 7, 7))
        return Logits(name='logits')(x).mean(axis=(1, 2, 3))


class Logits(nn.Module):
    """The last layer, one module deeper than need be: so it is in the published files."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[...,1024] -> [...,400]."""
        return nn.Conv(CLASSES, (1, 1, 1), precision='highest', name='conv3d')(x)


def to_input(video: jax.Array, resize: Resize) -> jax.Array:
    """Clips as the network was shown them: uint8 [B,T,H,W,3] -> float32 [B,T,224,224,3] in [-1, 1].

    Args:
      video: of any size.
      resize: 'tf1': squashed to a square, pixel i of the result taken at i * H / 224. 'torch-crop': shorter side to
        224, pixel centres kept (i + 1/2), then the middle square.
    """
    pixels = video.astype(jnp.float32)
    *_, height, width, _ = video.shape
    if resize == 'tf1':
        rows, columns = (_bilinear(size, SIDE, centred=False) for size in (height, width))
    else:
        shorter = min(height, width)
        resized = (SIDE if size == shorter else math.ceil(size * (SIDE / shorter)) for size in (height, width))
        rows, columns = (_middle(_bilinear(*sizes, centred=True)) for sizes in zip((height, width), resized))
    square = jnp.einsum('bthwc,yh,xw->btyxc', pixels, rows, columns, precision='highest')
    return square * (2 / 255) - 1


def _bilinear(size: int, resized: int, centred: bool) -> np.ndarray:
    """Weights float32 [resized,size] of linear interpolation; beyond the border, the border's pixel."""
    places = np.arange(resized) * size / resized
    if centred:
        places = (np.arange(resized) + 0.5) * size / resized - 0.5
    places = np.clip(places, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)[None])).astype(np.float32)


def _middle(rows: np.ndarray) -> np.ndarray:
    start = (len(rows) - SIDE) // 2
    return rows[start : start + SIDE]


def read_weights(source: str | os.PathLike) -> tuple[dict, Report]:
    """The variables {'params', 'batch_stats'} of an `I3D` from a published file, and what became of its keys.

    Args:
      source: VideoGPT's state dict (287 keys, 344 with its counters), or the 230 variables of the TensorFlow graph by
        their names in a .npz.

    Raises:
      OSError: the file cannot be read.
      ConfigError: it is damaged, its keys are not exactly those of the network, or it scales in batch norm; one line
        names them.
    """
    shapes = jax.eval_shape(I3D(1e-3).init, jax.random.key(0), jnp.zeros((1, MIN_FRAMES, SIDE, SIDE, 3)))
    wanted = unflatten_dict(flatten_dict(shapes['params']) | flatten_dict(shapes['batch_stats']))
    weights = checkpoint_files.open_weights(source)
    made, report = key_map.convert(weights, wanted, LAYOUTS, os.fspath(source))
    scaled = [key for key in report.dropped.get(UNSCALED, ()) if (weights[key].read() != 1).any()]
    if scaled:
        raise ConfigError(f'{source} is not the published network: not 1 everywhere: {", ".join(scaled[:4])}')
    flat = flatten_dict(made)
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
            (r'^Mixed_5b\.b2b', 'Mixed_5b/Branch_2/Conv3d_0a_3x3'),  # so misnamed in the graph
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
