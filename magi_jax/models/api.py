"""What objectives and samplers need of a video model, and the one table that makes models.

Dimension key: B clips, R rows (frames handed in), N tokens of a frame, C token width, D width, F cache slots; t, n: the
local part of T, N on one device.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import Config, MagiConfig, VideomarConfig
from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.rotary import check_split
from magi_jax.layers.trunk import KeysValues
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.models.magi import Magi
from magi_jax.models.videomar import Videomar

Array = jax.Array


class VideoModel(Protocol):
    """A linen module that predicts the hidden tokens of a frame from the complete frames before it.

    The methods without parameters work on an unbound module.

    Attributes:
      shape: sizes of the training clips.
      sharded: axis that devices share along mesh axis `sequence` when they embed and predict: 'frames' or 'sites'.
      guided_away_from: what guidance moves away from: predictions without earlier frames, or without text.
      resizable: True if the model can sample frames of other sizes than it was trained on.
      sites: number of sites of a frame in the trunk: its tokens, and perhaps further ones.
    """

    shape: ClipShape
    sharded: Literal['frames', 'sites']
    guided_away_from: Literal['history', 'text']
    resizable: bool

    @property
    def sites(self) -> int: ...

    def __call__(
        self, observed: Array | None, masked: Array, mask: Array, conditions: Conditions, dropout_keys: Array | None
    ) -> Array:
        """Run the training pass: tokens [B, t, N, C] and mask bool [B, t, N] (True = hidden) -> z [B, t, N, D].

        `observed` are the complete frames of complete teacher forcing; without it every frame sees the ones before it
        as they are in `masked`.
        """

    def observe(self, tokens: Array, conditions: Conditions, positions: Array, cache: KVCache) -> KeysValues:
        """Encode R complete frames [B, R, N, C] after the cached ones; return their keys and values for the cache."""

    def predict(self, tokens: Array, mask: Array, conditions: Conditions, position: Array, cache: KVCache) -> Array:
        """Compute z [B, N, D] of one new frame [B, N, C] after the cached ones."""

    def prepare(self, variables: Any, conditions: Conditions) -> Conditions:
        """Compute once what all passes of a video would compute of its conditions."""

    def empty_cache(self, clips: int, slots: int) -> KVCache:
        """Return this device's part of an empty cache with room for `slots` frames."""

    def positions(self, frames: int, slots: int) -> np.ndarray:
        """Return the temporal position of each cache slot, float32 [slots], for a video of `frames` frames."""

    def training_flops(self) -> dict[str, float]:
        """Return the FLOPs of a forward training pass of one clip, by component."""

    def frame_flops(self, slots: int) -> dict[str, float]:
        """Return the FLOPs of a pass of one frame of one clip against `slots` cached frames, by component."""


def _make_magi(config: MagiConfig, shape: ClipShape, **fields: Any) -> VideoModel:
    return Magi(config.model, shape, **fields)


def _make_videomar(config: VideomarConfig, shape: ClipShape, **fields: Any) -> VideoModel:
    check_split(config.model.rope_split, config.model.width // config.model.heads)
    return Videomar(config.model, shape, config.text, **fields)


MAKERS: dict[str, Callable[..., VideoModel]] = {'magi': _make_magi, 'videomar': _make_videomar}


def make_model(config: Config, shape: ClipShape, layout: Layout = SINGLE_DEVICE, training: bool = False) -> VideoModel:
    """Make the model of `config.system`; in training it rematerialises and unrolls as `config.train` says."""
    fields: dict[str, Any] = {'dtype': jnp.dtype(config.train.compute_dtype), 'layout': layout}
    if training:
        fields |= {'remat': config.train.remat, 'unroll': config.train.unroll}
    return MAKERS[config.system](config, shape, **fields)
