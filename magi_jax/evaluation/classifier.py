"""A small frozen 3-D network that classifies objects and motion in `bouncing_objects`.

Its features define the embedded score. `launch.train_classifier` trained it once. Weights are in weights/<kind>.npz;
hash, seed and accuracies are in weights/<kind>.json. Scores are comparable only for the same weights.

Dimension key: B clips, T = 16 frames, S = T/2 time slots, H W pixels, F = 64 features, C channels, U units of a factor.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax.traverse_util import unflatten_dict

from magi_jax.config import ConfigError

FRAMES = 16
SLOT_FRAMES = 2  # frames of a time slot
WIDTH = 64
PATCH = 4
GATE = 0.9  # least accuracy of every factor; features of a worse classifier give meaningless distances
FOLDER = pathlib.Path(__file__).with_name('weights')
# factor -> (units, classes). Each unit of a factor has one class in every time slot.
FACTORS = {
    # for each palette colour: its object (0: none, then SHAPES), moves right, moves down
    'shapes': {'object': (4, 4), 'rightward': (4, 2), 'downward': (4, 2), 'interval': (1, 2), 'sharp': (1, 2)},
    # for each digit class: its count; for both digits together: how many move right, how many down
    'digits': {'object': (10, 3), 'rightward': (1, 3), 'downward': (1, 3), 'interval': (1, 2), 'sharp': (1, 2)},
}


class Convolution(nn.Module):
    """A 3x3x3 SAME convolution, computed as a 3x3 convolution over the channels of three frames.

    XLA's CPU backend is slow at three-dimensional convolutions.
    """

    features: int
    strides: tuple[int, int]  # strides of H and W

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B,T,H,W,C] to [B,T,H/strides[0],W/strides[1],features]."""
        clips, frames = x.shape[:2]
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, tap : tap + frames] for tap in range(3)], axis=-1)
        x = rearrange(x, 'b t h w c -> (b t) h w c')
        init = nn.initializers.he_normal()
        x = nn.Conv(self.features, (3, 3), self.strides, kernel_init=init, precision='highest', name='planes')(x)
        return rearrange(x, '(b t) h w c -> b t h w c', b=clips)


class Classifier(nn.Module):
    """Three 3-D convolutions, the first over patches.

    The features of a time slot depend on about ten frames around it.
    """

    kind: str  # key of FACTORS

    def setup(self) -> None:
        # No norms: they would remove the size of an object, which identifies its shape.
        self.first = nn.Dense(48, kernel_init=nn.initializers.he_normal(), precision='highest')
        self.second = Convolution(WIDTH, (2, 2))
        self.third = Convolution(WIDTH, (1, 1))
        self.heads = {
            factor: nn.Dense(units * classes, precision='highest')
            for factor, (units, classes) in FACTORS[self.kind].items()
        }

    def features(self, video: jax.Array) -> jax.Array:
        """Map uint8 [B,T,H,W,3] to float32 [B,S,F], the penultimate layer. Its mean over S describes the clip."""
        x = rearrange(video, 'b t (h py) (w px) c -> b t h w (py px c)', py=PATCH, px=PATCH)
        x = _every_other_cube(x).astype(jnp.float32) / 255
        for layer in (self.first, self.second, self.third):
            x = nn.relu(layer(x))
        return reduce(x, 'b s h w f -> b s f', 'mean')

    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        """Map uint8 [B,T,H,W,3] to {factor: logits float32 [B,S,U,classes]}."""
        features = self.features(video)
        return {
            factor: rearrange(head(features), 'b s (u c) -> b s u c', c=FACTORS[self.kind][factor][1])
            for factor, head in self.heads.items()
        }


def _every_other_cube(x: jax.Array) -> jax.Array:
    """Return the inputs of a 3x3x3 convolution with stride 2: [B,T,H,W,C] to [B,T/2,H/2,W/2,27C].

    As a matrix product the convolution is faster on CPUs, if the input needs no gradient.
    """
    _, *sizes, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 1), (0, 0)))
    taps = itertools.product(range(3), repeat=3)
    views = [x[:, t : t + sizes[0] : 2, h : h + sizes[1] : 2, w : w + sizes[2] : 2] for t, h, w in taps]
    return jnp.concatenate(views, axis=-1)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A frozen classifier."""

    kind: str
    params: Any
    sha256: str  # hash of the weights file
    accuracies: dict[str, float]  # accuracy of each factor on validation clips


def load_classifier(kind: str, folder: pathlib.Path = FOLDER) -> Trained:
    """Load the frozen classifier for 'shapes' or 'digits'.

    Raises:
      ConfigError: there is no classifier of this kind, its file has another hash, or it is below the gate.
    """
    try:
        facts = json.loads((folder / f'{kind}.json').read_text())
        content = (folder / f'{kind}.npz').read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f'no classifier for {kind}: {error.filename} is missing; launch.train_classifier') from error
    if hashlib.sha256(content).hexdigest() != facts['sha256']:
        raise ConfigError(f'{folder / kind}.npz is not the file that {kind}.json describes: restore both from git')
    check_gate(kind, facts['accuracies'])
    with np.load(folder / f'{kind}.npz') as arrays:
        params = unflatten_dict({name: np.float32(value) for name, value in arrays.items()}, sep='/')
    return Trained(kind, params, facts['sha256'], facts['accuracies'])


def check_gate(kind: str, accuracies: dict[str, float]) -> None:
    """Raise ConfigError if the accuracy of a factor is below GATE."""
    low = [f'{factor} {accuracy:.3f}' for factor, accuracy in accuracies.items() if not accuracy >= GATE]
    if low:
        raise ConfigError(f'the classifier for {kind} must not score: {", ".join(low)}, each must reach {GATE}')
