"""MAGI: the spatial-temporal transformer over observed and masked frames (arXiv 2501.12389 §4, §A).

Dimension key: B clips, T trained frames, R rows (frames handed in), N tokens of a frame, C token width, D width,
L blocks, F cache slots; t, n: the local part of T, N on one device (all of it, unless the layout shards the axis).
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import MagiModelConfig, Remat
from magi_jax.layers.blocks import Block
from magi_jax.layers.dropout import ClipDropout
from magi_jax.layers.kv_cache import KVCache, empty_cache
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.linear import Linear, layer_norm
from magi_jax.layers.positions import read_table, sincos_1d, sincos_2d, stretched_positions
from magi_jax.layers.trunk import KeysValues, Trunk
from magi_jax.masking.frames import (
    cached_causal,
    causal,
    complete_teacher_forcing,
    training_rows,
    without_history,
)
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions

Array = jax.Array


class Magi(nn.Module):
    """The trunk of MAGI: maps tokens and masks to one condition vector for each token, the input of the diffusion head.

    Attributes:
      config: widths, depth and the chosen readings of the paper (A3 to A14).
      shape: sizes of the training clips.
      dtype: dtype of matrix products; parameters, norms, softmax and positions stay float32.
      remat: what the backward pass recomputes (layers/trunk.py POLICIES).
      unroll: blocks in one iteration of the loop over depth.
      layout: sharding of frames and sites.
    """

    sharded: ClassVar[str] = 'frames'
    guided_away_from: ClassVar[str] = 'history'
    resizable: ClassVar[bool] = False

    config: MagiModelConfig
    shape: ClipShape
    dtype: Any = jnp.bfloat16
    remat: Remat = 'none'
    unroll: int = 1
    layout: Layout = SINGLE_DEVICE

    def setup(self) -> None:
        width, shape, config = self.config.width, self.shape, self.config
        self.trunk = Trunk(Block, config, self.dtype, self.remat, self.unroll, self.layout)
        self.observed_projection = Linear(width, ('token', 'embed'), self.dtype, name='token_projection')
        self.masked_projection = self.observed_projection
        if not config.shared_projection:
            self.masked_projection = Linear(width, ('token', 'embed'), self.dtype, name='masked_token_projection')
        self.mask_token = self._table('mask_token', (width,))
        table = {'position': (shape.tokens, width), 'frame': (width,), 'full': (shape.frames, shape.tokens, width)}
        if config.teacher_forcing == 'complete':
            self.observed_table = self._table('observed_table', table[config.frame_table])
        self.masked_table = self._table('masked_table', table[config.frame_table])
        head_rows = (shape.frames,) if config.head.position_table == 'per_frame' else ()
        self.head_table = self._table('head_table', (*head_rows, shape.tokens, width))
        self.interval_table = self._table('interval_table', (shape.intervals, width))
        self.noise_table = self._table('noise_table', (shape.noise_levels, width))
        if config.noise_embedding == 'concat_channel':
            self.noise_projection = Linear(width, (None, 'embed'), self.dtype, name='noise_projection')
        if config.input_norm:
            self.input_norm = layer_norm('input_norm')
        self.output_norm = layer_norm('output_norm')

    def _table(self, name: str, shape: tuple[int, ...]) -> Array:
        axes = (None,) * (len(shape) - 1) + ('embed',)
        return self.param(name, nn.with_logical_partitioning(nn.initializers.normal(0.02), axes), shape)

    def __call__(
        self,
        observed: Array | None,
        masked: Array,
        mask: Array,
        conditions: Conditions,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Run the training pass over whole clips. Under CTF every masked frame sees the complete frames before it.

        Args:
          observed: [B, t, N, C] noised tokens of the complete frames; None under MTF.
          masked: [B, t, N, C] tokens of the frames to predict.
          mask: bool [B, t, N], True = hidden.
          conditions: interval in 1..shape.intervals; level [B, t] of the observed frames (under MTF: of the masked
            frames); history.
          dropout_keys: [B] keys; None = no dropout.

        Returns:
          z float32 [B, t, N, D], meaningful where mask is True.
        """
        positions = self.layout.local_frames(jnp.arange(self.shape.frames, dtype=jnp.float32), 0)
        rows = training_rows(self.shape.frames, self.layout.parts, self.config.teacher_forcing == 'complete')
        interval, level = conditions.interval, conditions.level
        if observed is None:
            x, conditioning = self._embed(masked, mask, interval, level, positions)
        else:
            seen = observed.shape[1] - (self.layout.parts == 1)  # no frame sees the last one: see training_rows
            parts = [
                self._embed(observed[:, :seen], None, interval, level[:, :seen], positions[:seen]),
                self._embed(masked, mask, interval, jnp.zeros_like(level), positions),
            ]
            x, conditioning = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), *parts)
        dropout = self._dropout(rows, dropout_keys)
        x, _ = self.trunk(x, None, self._visible(rows, conditions.history), conditioning, dropout)
        return self._condition(x[:, -masked.shape[1] :], positions)

    def _visible(self, rows: np.ndarray, history: Array | None) -> Array:
        """Return which rows each row sees, bool [R, R] or with `history` [B, R, R]; `rows` is `training_rows` [R]."""
        frames = rows.max() // 2 + 1
        if self.config.teacher_forcing == 'masked':
            visible = causal(frames)
        else:
            visible = complete_teacher_forcing(frames)[rows[:, None], rows[None]]
        if history is None:
            return jnp.asarray(visible)
        return jnp.where(history[:, None, None], visible[None], without_history(visible, rows)[None])

    def _dropout(self, rows: np.ndarray, keys: Array | None) -> ClipDropout | None:
        """Return dropout whose bits depend on frame and role of a row, not on padding or the order of rows."""
        if keys is None or not self.config.dropout:
            return None
        frames, padded = self.shape.frames, rows.max() // 2 + 1
        numbers = np.minimum(rows % padded, frames - 1) + frames * (rows >= padded)
        return ClipDropout(keys, jnp.asarray(numbers), 2 * frames, self.config.dropout)

    def observe(self, tokens: Array, conditions: Conditions, positions: Array, cache: KVCache) -> KeysValues:
        """Encode R complete frames that follow the cached ones; the caller appends the result to the cache.

        Args:
          tokens: [B, R, N, C].
          conditions: interval, and level [B, R].
          positions: float32 [R], each in [0, T-1].
          cache: keys and values of the `cache.length` frames before these.

        Returns:
          Keys and values [L, B, R, n, D] of the temporal layers.
        """
        visible = None
        if self.config.teacher_forcing == 'masked':
            visible = jnp.zeros(tokens.shape[:3], bool)
        x, conditioning = self._embed(tokens, visible, conditions.interval, conditions.level, positions)
        mask = cached_causal(tokens.shape[1], cache.capacity, cache.length)
        return self.trunk(self.layout.local_sites(x, 2), _past(cache), mask, conditioning, None)[1]

    def predict(self, tokens: Array, mask: Array, conditions: Conditions, position: Array, cache: KVCache) -> Array:
        """Compute the condition vectors for the hidden tokens of one new frame that follows the cached ones.

        Args:
          tokens: [B, N, C], read where mask is False.
          mask: bool [B, N], True = hidden.
          conditions: interval.
          position: float32 scalar in [0, T-1].
          cache: keys and values of the complete frames before this one.

        Returns:
          z float32 [B, N, D]. It equals the row of the training pass for the same frames, mask and level.
        """
        level, positions = jnp.zeros((tokens.shape[0], 1), jnp.int32), position[None]
        x, conditioning = self._embed(tokens[:, None], mask[:, None], conditions.interval, level, positions)
        rows = cached_causal(1, cache.capacity, cache.length)
        x, _ = self.trunk(self.layout.local_sites(x, 2), _past(cache), rows, conditioning, None)
        return self._condition(self.layout.gather_sites(x), positions)[:, 0]

    def prepare(self, variables: Any, conditions: Conditions) -> Conditions:
        """Return the conditions unchanged: a pass has little to compute of them."""
        del variables
        return conditions

    def empty_cache(self, clips: int, slots: int) -> KVCache:
        """Return this device's part of an empty cache with room for `slots` frames."""
        sites = self.layout.local_size(self.sites)
        return empty_cache(self.config.blocks, clips, slots, sites, self.config.width, self.dtype)

    def positions(self, frames: int, slots: int) -> np.ndarray:
        """Return positions float32 [slots] in the trained table; a video of more slots than that stretches over it."""
        trained = self.shape.frames
        positions = stretched_positions(frames if slots > trained else trained, trained)
        return np.pad(positions, (0, max(0, slots - len(positions))), mode='edge')

    @property
    def sites(self) -> int:
        """Return the sites of a frame in the trunk: its tokens, plus one if the noise level is a token (A3)."""
        return self.shape.tokens + (self.config.noise_embedding == 'concat_token')

    def training_flops(self) -> dict[str, float]:
        """Return the FLOPs of a forward training pass of one clip: 'spatial', 'temporal', 'embedding'.

        With complete teacher forcing, 2T frames pass the trunk.
        """
        rows = self.shape.frames * (2 if self.config.teacher_forcing == 'complete' else 1)
        return self._flops(rows, rows)

    def frame_flops(self, slots: int) -> dict[str, float]:
        """Return the FLOPs of a pass of one frame of one clip against `slots` cached frames."""
        return self._flops(1, slots + 1)

    def _flops(self, rows: int, key_rows: int) -> dict[str, float]:
        """Return the FLOPs of `rows` frames with `key_rows` frames as temporal keys. Temporal attention is dense."""
        config, width = self.config, self.config.width
        projections, mlp = 8 * width * width, 4 * width * config.mlp_width
        spatial = projections + 4 * self.sites * width + (mlp if config.mlp_layers == 'both' else 0)
        temporal = projections + 4 * key_rows * width + mlp
        embedding = 2 * self.shape.token_width * width
        if config.noise_embedding == 'concat_channel':
            embedding += 4 * width * width
        return {
            'spatial': float(rows * self.sites * config.blocks * spatial),
            'temporal': float(rows * self.sites * config.blocks * temporal),
            'embedding': float(rows * self.shape.tokens * embedding),
        }

    def _embed(
        self, tokens: Array, mask: Array | None, interval: Array, level: Array, positions: Array
    ) -> tuple[Array, Array | None]:
        """Embed tokens [B,R,N,C] of observed (mask None) or masked frames.

        Returns:
          x [B,R,N',D] and the conditioning of every block (A11) or None. N' = N + 1 if the noise level is a token (A3),
          else N.
        """
        config, shape = self.config, self.shape
        if mask is None:
            x, table = self.observed_projection(tokens), self.observed_table
        else:
            x, table = self.masked_projection(tokens), self.masked_table
            x = jnp.where(mask[..., None], self.mask_token[None, None, None], x)
        table = read_table(table, positions) if config.frame_table == 'full' else table
        table = jnp.expand_dims(table, tuple(range(4 - table.ndim)))
        time = read_table(jnp.asarray(sincos_1d(shape.frames, config.width)), positions)[None, :, None]
        time_and_interval = time + self.interval_table[interval - 1][:, None, None]
        x = x.astype(jnp.float32) + jnp.asarray(sincos_2d(shape.rows, shape.columns, config.width))[None, None] + table
        x = self._add_noise_level(x + time_and_interval, self.noise_table[level][:, :, None])
        if config.input_norm:
            x = self.input_norm(x)
        return x, (time_and_interval if config.embed_at == 'every_block' else None)

    def _add_noise_level(self, x: Array, noise: Array) -> Array:
        """Add the noise embedding [B,R,1,D] to x [B,R,N,D] in one of three ways (A3); return [B,R,N',D]."""
        if self.config.noise_embedding == 'add':
            return x + noise
        if self.config.noise_embedding == 'concat_token':
            return jnp.concatenate([x, noise], axis=2)
        both = jnp.concatenate([x, jnp.broadcast_to(noise, x.shape)], axis=-1)
        return self.noise_projection(both).astype(jnp.float32)

    def _condition(self, x: Array, positions: Array) -> Array:
        """Normalise the trunk output [B,R,N',D] and add the position table of the head (MAR): z [B,R,N,D]."""
        table = self.head_table[None]
        if self.config.head.position_table == 'per_frame':
            table = read_table(self.head_table, positions)
        return self.output_norm(x[:, :, : self.shape.tokens]) + table[None]


def _past(cache: KVCache) -> KVCache | None:
    return cache if cache.capacity else None
