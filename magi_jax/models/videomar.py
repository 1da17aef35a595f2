"""VideoMAR: one transformer with joint attention over all tokens of all frames up to the new one (arXiv 2506.14168).

Positions are rotations by frame, row and column number, so parameters do not depend on the size of a video. A frame is
complete or masked by its tokens alone: there are no embeddings of role, noise or frame interval.

Dimension key: B clips, T trained frames, R rows (frames handed in), N tokens of a frame, C token width, D width,
S tokens of a text, E width of a text state, L blocks, F cache slots, d head width; n: the local part of N on a device.
"""

from typing import Any, ClassVar

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import Remat, TextConfig, VideomarModelConfig
from magi_jax.layers.joint_blocks import BlockInputs, JointBlock, TextKeysBlock
from magi_jax.layers.kv_cache import KVCache, empty_cache
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.linear import MATRICES, Linear, layer_norm
from magi_jax.layers.rotary import rotary_tables
from magi_jax.layers.trunk import KeysValues, Trunk
from magi_jax.masking.frames import cached_causal, causal, complete_teacher_forcing, training_rows
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions, TextKeys, TextStates

Array = jax.Array


class Videomar(nn.Module):
    """The trunk of VideoMAR: maps tokens and masks to one condition vector for each token, for the diffusion head.

    Attributes:
      config: sizes of the model.
      shape: sizes of the clips. Only its tokens of a frame must match what is handed in.
      text: sizes of the text states; without an encoder there are no text layers.
      dtype: dtype of matrix products; parameters, norms, softmax and rotations stay float32.
      remat: what the backward pass recomputes (layers/trunk.py POLICIES).
      unroll: blocks in one iteration of the loop over depth.
      layout: sharding of sites and heads.
    """

    sharded: ClassVar[str] = 'sites'
    guided_away_from: ClassVar[str] = 'text'
    resizable: ClassVar[bool] = True

    config: VideomarModelConfig
    shape: ClipShape
    text: TextConfig
    dtype: Any = jnp.bfloat16
    remat: Remat = 'none'
    unroll: int = 1
    layout: Layout = SINGLE_DEVICE

    def setup(self) -> None:
        width, small = self.config.width, nn.initializers.normal(0.02)
        self.trunk = Trunk(JointBlock, self.config, self.dtype, self.remat, self.unroll, self.layout)
        self.token_projection = Linear(width, ('token', 'embed'), self.dtype)
        self.mask_token = self.param('mask_token', nn.with_logical_partitioning(small, ('embed',)), (width,))
        if self.text.encoder:
            self.text_projection = Linear(width, ('text', 'embed'), self.dtype)
            axes, shape = (None, 'embed'), (self.text.length, width)
            self.null_text = self.param('null_text', nn.with_logical_partitioning(small, axes), shape)
        self.output_norm = layer_norm('output_norm')

    def __call__(
        self,
        observed: Array | None,
        masked: Array,
        mask: Array,
        conditions: Conditions,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Run the training pass over whole clips.

        Args:
          observed: [B, T, n, C] tokens of the complete frames, which masked frames see under complete teacher forcing;
            None = one sequence, in which every frame sees the frames before it as they are in `masked`.
          masked: [B, T, n, C] tokens of the frames to predict.
          mask: bool [B, T, n], True = hidden.
          conditions: text as states.
          dropout_keys: unused, the model has no dropout.

        Returns:
          z float32 [B, T, n, D], meaningful where mask is True and the frames before are complete.
        """
        del dropout_keys
        frames = masked.shape[1]
        x, numbers, visible = self._embed(masked, mask), np.arange(frames), causal(frames)
        if observed is not None:  # the last observed frame is left out: no frame sees it
            rows = training_rows(frames, 1, True)
            x = jnp.concatenate([self._embed(observed[:, :-1], None), x], axis=1)
            numbers, visible = rows % frames, complete_teacher_forcing(frames)[rows[:, None], rows[None]]
        inputs = self._inputs(jnp.asarray(numbers, jnp.float32), visible, conditions)
        return self.output_norm(self.trunk(x, inputs)[0][:, -frames:])

    def observe(self, tokens: Array, conditions: Conditions, positions: Array, cache: KVCache) -> KeysValues:
        """Encode R complete frames that follow the cached ones; the caller appends the result to the cache.

        Args:
          tokens: [B, R, N, C].
          conditions: text as keys, or as states.
          positions: frame numbers float32 [R].
          cache: keys and values of the `cache.length` frames before these.

        Returns:
          Keys and values [L, B, R, N, D'] of all layers.
        """
        return self._sample(tokens, None, conditions, positions, cache)[1]

    def predict(self, tokens: Array, mask: Array, conditions: Conditions, position: Array, cache: KVCache) -> Array:
        """Compute the condition vectors for the hidden tokens of one new frame that follows the cached ones.

        Args:
          tokens: [B, N, C], read where mask is False.
          mask: bool [B, N], True = hidden.
          conditions: text as keys, or as states.
          position: frame number, float32 scalar.
          cache: keys and values of the complete frames before this one.

        Returns:
          z float32 [B, N, D]. It equals the row of the training pass for the same frames and mask.
        """
        x, _ = self._sample(tokens[:, None], mask[:, None], conditions, position[None], cache)
        return self.layout.gather_sites(self.output_norm(x))[:, 0]

    def project_text(self, text: TextStates) -> Array:
        """Map text states to the width of the model [B, S, D]; clips without text get the null sequence."""
        return jnp.where(text.keep[:, None, None], self.text_projection(text.states), self.null_text[None])

    def prepare(self, variables: Any, conditions: Conditions) -> Conditions:
        """Replace text states by the keys and values of every block, which do not change within a video."""
        text = conditions.text
        if text is None:
            return conditions
        states = self.apply(variables, text, method='project_text')
        trunk = {name: variables[name]['trunk'] for name in ('params', MATRICES) if name in variables}
        reader = Trunk(TextKeysBlock, self.config, self.dtype, layout=self.layout, parent=None)
        k, v = reader.apply(trunk, states)[1]
        k, v = (einops.rearrange(t, 'L B S D -> B L S D') for t in (k, v))
        return conditions.replace(text=TextKeys(k, v, _text_mask(text)))

    def empty_cache(self, clips: int, slots: int) -> KVCache:
        """Return this device's part of an empty cache with room for `slots` frames."""
        sites, width = self.layout.cached_sizes(self.sites, self.config.width)
        return empty_cache(self.config.blocks, clips, slots, sites, width, self.dtype)

    def positions(self, frames: int, slots: int) -> np.ndarray:
        """Return the frame numbers of the cache slots, float32 [slots]."""
        del frames
        return np.arange(slots, dtype=np.float32)

    @property
    def sites(self) -> int:
        """Return the sites of a frame in the trunk: its tokens."""
        return self.shape.tokens

    def training_flops(self) -> dict[str, float]:
        """Return the FLOPs of a forward training pass of one clip: 'attention', 'text', 'mlp', 'embedding'."""
        frames = self.shape.frames
        if self.config.teacher_forcing == 'single':
            return self._flops(frames, int(causal(frames).sum()), text=True)
        rows = training_rows(frames, 1, True)
        pairs = complete_teacher_forcing(frames)[rows[:, None], rows[None]].sum()
        return self._flops(len(rows), int(pairs), text=True)

    def frame_flops(self, slots: int) -> dict[str, float]:
        """Return the FLOPs of a pass of one frame of one clip against `slots` cached frames, text keys given."""
        return self._flops(1, slots + 1, text=False)

    def _flops(self, rows: int, pairs: int, text: bool) -> dict[str, float]:
        """Return the FLOPs of `rows` frames with `pairs` visible (frame, frame) pairs, and of reading the text."""
        config, width, tokens = self.config, self.config.width, self.shape.tokens
        attention = rows * tokens * 8 * width * width + pairs * tokens * tokens * 4 * width
        flops = {
            'attention': float(config.blocks * attention),
            'text': 0.0,
            'mlp': float(config.blocks * rows * tokens * 4 * width * config.mlp_width),
            'embedding': float(rows * tokens * 2 * self.shape.token_width * width),
        }
        if self.text.encoder:
            length = self.text.length
            flops['text'] += config.blocks * rows * tokens * (4 * width * width + 4 * length * width)
            flops['text'] += text * length * width * (4 * width * config.blocks + 2 * self.text.width)
        return flops

    def _sample(
        self, tokens: Array, mask: Array | None, conditions: Conditions, positions: Array, cache: KVCache
    ) -> tuple[Array, KeysValues]:
        frames = tokens.shape[1]
        x = self.layout.local_sites(self._embed(tokens, mask), 2)
        inputs = self._inputs(positions, causal(frames), conditions)
        if cache.capacity:
            inputs = inputs.replace(cache=cache, mask=cached_causal(frames, cache.capacity, cache.length))
        return self.trunk(x, inputs)

    def _embed(self, tokens: Array, mask: Array | None) -> Array:
        """Embed tokens [B, R, n, C] as float32 [B, R, n, D]; the mask token replaces hidden ones."""
        x = self.token_projection(tokens).astype(jnp.float32)
        return x if mask is None else jnp.where(mask[..., None], self.mask_token[None, None, None], x)

    def _inputs(self, positions: Array, visible: np.ndarray, conditions: Conditions) -> BlockInputs:
        config, shape = self.config, self.shape
        rotation = rotary_tables(positions, shape.rows, shape.columns, config.rope_split, config.rope_base)
        cos, sin = (self.layout.local_sites(table, 1) for table in rotation)
        inputs = BlockInputs(cos, sin, tuple(map(tuple, visible.tolist())))
        text = conditions.text
        if isinstance(text, TextKeys):
            return inputs.replace(text_keys=(text.k, text.v), text_mask=text.mask)
        if text is not None:
            return inputs.replace(text=self.project_text(text), text_mask=_text_mask(text))
        return inputs


def _text_mask(text: TextStates) -> Array:
    """Return which text tokens are read: those that are no padding, and all tokens of the null sequence."""
    return text.mask | ~text.keep[:, None]
