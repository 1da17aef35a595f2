"""Joint blocks: pre-LN transformer layers over all tokens of all visible frames, and over a text (VideoMAR).

The block is that of Step-Video, without its timestep modulation: self-attention, cross-attention to the text on the
residual stream as it is, MLP. Queries and keys are normalised per head; no layer has a bias.

Dimension key: L blocks, B clips, R rows (frames in the sequence), S tokens of a text, N sites, D width, H heads, d head
width; n: the local part of N on one device; D', H': the local part of D, H.
"""

from typing import Any

import einops
import flax.linen as nn
import flax.struct
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from magi_jax.config import VideomarModelConfig
from magi_jax.layers.cached_frame_attention import cached_frame_attention
from magi_jax.layers.cross_attention import cross_attention
from magi_jax.layers.frame_attention import frame_attention
from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.linear import Linear, layer_norm, rms_norm
from magi_jax.layers.rotary import rotate
from magi_jax.layers.trunk import BLOCK_INPUT, SUBLAYER, KeysValues

Array = jax.Array
BLOCK_NORM_EPS = 1e-5


@flax.struct.dataclass
class BlockInputs:
    """What every block reads besides the residual stream.

    Attributes:
      cos: cosines of the rotation of each token, float32 [R, n, d].
      sin: sines, same shape.
      visible: bool [R, R] as nested tuples, which frames each frame sees; known when the program is traced.
      cache: earlier frames, or None.
      mask: bool [R, F + R] of allowed (query frame, key frame) pairs with a cache; else None.
      text: projected text states [B, S, D], or None.
      text_keys: keys and values of the text for all blocks, [B, L, S, D] each, in place of `text`; or None.
      text_mask: bool [B, S], False = padding; or None.
    """

    cos: Array
    sin: Array
    visible: tuple[tuple[bool, ...], ...] = flax.struct.field(pytree_node=False)
    cache: KVCache | None = None
    mask: Array | None = None
    text: Array | None = None
    text_keys: KeysValues | None = None
    text_mask: Array | None = None


class JointAttention(nn.Module):
    """Self-attention of every token to all tokens of the frames that its frame sees."""

    config: VideomarModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, x: Array, number: Array, inputs: BlockInputs) -> tuple[Array, KeysValues]:
        """Map x [B, R, n, D] to the output of the same shape, and own keys and values [B, R, N, D'] for the cache."""
        config, layout = self.config, self.layout
        width, head_width = config.width // layout.splits, config.width // config.heads
        q, k, v = Linear((3, width), ('embed', None, 'heads'), self.dtype, use_bias=False, name='qkv')(x)
        q, k = (
            self._turned(rms_norm(name)(_split(t, head_width)), inputs)
            for name, t in (('query_norm', q), ('key_norm', k))
        )
        q, k, v = layout.to_attention(q, k, v)
        if inputs.cache is None:
            visible = np.array(inputs.visible)
            out = frame_attention(*(_split(t, head_width) for t in (q, k, v)), visible, layout.frame_attention)
            out = _merge(out)
        else:
            heads = q.shape[-1] // head_width
            past = inputs.cache, number, inputs.mask
            out = cached_frame_attention(q, k, v, *past, heads, layout.frame_attention)
        out = layout.from_attention(out)
        project = Linear(
            config.width, ('heads', 'embed'), self.dtype, then=layout.sum_over_tensor, use_bias=False, name='out'
        )
        return project(out), (k, v)

    def _turned(self, x: Array, inputs: BlockInputs) -> Array:
        return _merge(rotate(x.astype(self.dtype), inputs.cos, inputs.sin, self.config.rope_split))


class TextAttention(nn.Module):
    """Cross-attention of every token to the tokens of the text."""

    config: VideomarModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        width = config.width // self.layout.splits
        self.query = Linear(width, ('embed', 'heads'), dtype, use_bias=False)
        self.key_value = Linear((2, width), ('embed', None, 'heads'), dtype, use_bias=False)
        self.query_norm, self.key_norm = rms_norm('query_norm'), rms_norm('key_norm')
        self.out = Linear(config.width, ('heads', 'embed'), dtype, then=self.layout.sum_over_tensor, use_bias=False)

    def keys_values(self, text: Array) -> KeysValues:
        """Map text states [B, S, D] to keys and values [B, S, D']."""
        k, v = self.key_value(text)
        return _merge(self.key_norm(_split(k, self._head_width)).astype(self.dtype)), v

    def __call__(self, x: Array, keys_values: KeysValues, mask: Array) -> Array:
        """Map x [B, R, n, D] to the output of the same shape; `mask` bool [B, S] is False for padding."""
        q = self.query_norm(_split(self.query(x), self._head_width)).astype(self.dtype)
        k, v = (_split(t.astype(self.dtype), self._head_width) for t in keys_values)
        return self.out(_merge(cross_attention(q, k, v, mask)))

    @property
    def _head_width(self) -> int:
        return self.config.width // self.config.heads


class JointBlock(nn.Module):
    """x += Attn(LN(x)); x += TextAttn(x); x += MLP(LN(x))."""

    config: VideomarModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, x: Array, number: Array, inputs: BlockInputs) -> tuple[Array, KeysValues]:
        """Apply one block: one step of the scan over depth.

        Args:
          x: float32 residual stream [B, R, n, D].
          number: int32 index of this block.
          inputs: everything else.

        Returns:
          The new x, and keys and values of the new frames, [B, R, N, D'] each.
        """
        config, layout = self.config, self.layout
        x = checkpoint_name(x, BLOCK_INPUT)
        attention = JointAttention(config, self.dtype, layout, name='attention')
        y, keys_values = attention(layer_norm('attention_norm', eps=BLOCK_NORM_EPS)(x), number, inputs)
        x = x + checkpoint_name(y, SUBLAYER)
        if inputs.text_mask is not None:
            attention = TextAttention(config, self.dtype, layout, name='text_attention')
            if inputs.text_keys is None:
                text = attention.keys_values(inputs.text)
            else:
                text = tuple(jax.lax.dynamic_index_in_dim(t, number, 1, keepdims=False) for t in inputs.text_keys)
            x = x + checkpoint_name(attention(x, text, inputs.text_mask), SUBLAYER)
        h = layer_norm('mlp_norm', eps=BLOCK_NORM_EPS)(x)
        h = Linear(config.mlp_width // layout.splits, ('embed', 'mlp'), self.dtype, use_bias=False, name='up')(h)
        down = Linear(
            config.width, ('mlp', 'embed'), self.dtype, then=layout.sum_over_tensor, use_bias=False, name='down'
        )
        return x + down(jax.nn.gelu(h, approximate=True)), keys_values


class TextKeysBlock(nn.Module):
    """The part of `JointBlock` that reads the text alone, with the same parameters."""

    config: VideomarModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, text: Array, number: Array) -> tuple[Array, KeysValues]:
        """Return the text states [B, S, D] unchanged, and their keys and values [B, S, D] of this block."""
        del number
        attention = TextAttention(self.config, self.dtype, self.layout, name='text_attention')
        return text, attention.keys_values(text)


def _split(x: Array, head_width: int) -> Array:
    return einops.rearrange(x, '... (h d) -> ... h d', d=head_width)


def _merge(x: Array) -> Array:
    return einops.rearrange(x, '... h d -> ... (h d)')
