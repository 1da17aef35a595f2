"""Factorised blocks: one spatial and one temporal pre-LN transformer layer (MAGI §A.1, ViT/MAR).

Dimension key: L blocks, B clips, R rows (frames in the sequence), S key rows (cached + own), N sites, D width, H heads;
r, n: the local part of R, N on one device (all of it, unless the layout shards the axis).
"""

from typing import Any, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from magi_jax.config import MagiModelConfig
from magi_jax.layers.cached_attention import cached_attention
from magi_jax.layers.dropout import ClipDropout, FeatureBits, TokenDropout, drop, dropped_gelu
from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.linear import Linear, gelu, layer_norm
from magi_jax.layers.self_attention import self_attention, with_gradient_for_weights
from magi_jax.layers.site_tiles import SiteTiles, site_tiles
from magi_jax.layers.trunk import BLOCK_INPUT, SUBLAYER, KeysValues

Array = jax.Array
Past = tuple[KVCache, Array]  # cached frames, and the index of the block that reads its own part

SPATIAL, TEMPORAL = 0, 1  # layers of a block; the next line numbers the uses of dropout in a layer
WEIGHTS, ATTENDED, HIDDEN, MLP_OUT = range(4)


class Mlp(nn.Module):
    """Apply Linear, exact GELU, Linear, with dropout after the GELU and after the last Linear."""

    config: MagiModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, x: Array, dropout: TokenDropout | None) -> Array:
        hidden = self.config.mlp_width // self.layout.splits
        x = Linear(hidden, ('embed', 'mlp'), self.dtype, name='up')(x)
        if dropout is None:
            x = gelu(x)
        else:
            features = self.layout.local_split(jnp.arange(self.config.mlp_width), 0)
            x = dropped_gelu(x, dropout.feature_bits(HIDDEN, features), dropout.rate)
        down = Linear(self.config.width, ('mlp', 'embed'), self.dtype, then=self.layout.sum_over_tensor, name='down')
        return drop(down(x), dropout, MLP_OUT)


class Attention(nn.Module):
    """Multi-head self-attention over space or time; in time, the keys may include cached frames."""

    config: MagiModelConfig
    axis: Literal['space', 'time']
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, past: Past | None, dropout: TokenDropout | None) -> Any:
        """Attend from every row and return the new keys and values as well.

        Args:
          x: [B, r, n, D].
          mask: bool [R, S] of allowed (query row, key row) pairs, or None.
          past: cached frames whose keys and values come first, or None. Dropout is not supported with a cache.
          dropout: None = no dropout.

        Returns:
          Output [B, r, n, D], and this layer's own (k, v), [B, r, n, D] each.
        """
        width, heads = self.config.width // self.layout.splits, self.config.heads // self.layout.splits
        tiles = None
        if self.axis == 'time' and past is None:
            tiles = site_tiles(*x.shape[1:3], self.layout.lanes)
            x, mask = tiles.pack(x), tiles.mask(mask)
        then = with_gradient_for_weights if self.axis == 'space' and self.layout.lanes > 1 else None
        q, own_k, own_v = Linear((3, width), ('embed', None, 'heads'), self.dtype, then=then, name='qkv')(x)
        if past is not None:
            x = cached_attention(q, own_k, own_v, *past, mask, heads, merged=self.layout.lanes > 1)
        else:
            k, v = own_k, own_v
            if self.axis == 'space':
                k, v = self.layout.gather_sites(k), self.layout.gather_sites(v)
            q, k, v = (einops.rearrange(t, 'b r n (h d) -> b r n h d', h=heads) for t in (q, k, v))
            rate = 0.0 if dropout is None else dropout.rate
            # The GPU kernels multiply in reduced precision, so float32 uses the plain form.
            fused = self.layout.fused and self.dtype == jnp.bfloat16
            x = self_attention(q, k, v, mask, self._draws(tiles, k.shape[2], dropout), rate, fused)
            x = einops.rearrange(x, 'b r n h d -> b r n (h d)')
        x = Linear(self.config.width, ('heads', 'embed'), self.dtype, then=self.layout.sum_over_tensor, name='out')(x)
        if tiles is not None:
            x, own_k, own_v = (tiles.unpack(t) for t in (x, own_k, own_v))
        return drop(x, dropout, ATTENDED), (own_k, own_v)

    def _draws(self, tiles: SiteTiles | None, sites: int, dropout: TokenDropout | None) -> FeatureBits | None:
        """Return the random bits for dropout on attention weights.

        In time they depend on row numbers, not on array positions.
        """
        if dropout is None:
            return None
        words, keys, count = dropout.random_bits(WEIGHTS), jnp.arange(sites), sites
        if tiles is not None:
            words, keys, count = tuple(map(tiles.pack, words)), tiles.keys(dropout.rows), dropout.numbers
        heads = self.layout.local_split(jnp.arange(self.config.heads), 0)
        features = heads[:, None, None] * count + keys[None, None]
        return tuple(word[:, :, None, :, None] for word in words), features[None, None]


class Block(nn.Module):
    """One spatial and one temporal layer, each x += Attn(LN(x)); x += MLP(LN(x))."""

    config: MagiModelConfig
    dtype: Any
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(
        self,
        x: Array,
        number: Array,
        cache: KVCache | None,
        mask: Array,
        conditioning: Array | None,
        dropout: ClipDropout | None,
    ) -> tuple[Array, KeysValues]:
        """Apply one block: one step of the scan over depth.

        Args:
          x: float32 residual stream [B, r, N, D] in training, [B, r, n, D] in sampling.
          number: int32 index of this block.
          cache: keys and values of earlier frames for all blocks, or None.
          mask: bool [R, F + R] of allowed (query row, key row) pairs in the temporal layer.
          conditioning: [B, r, N or 1, D] added before the layers (A11), or None.
          dropout: None = no dropout.

        Returns:
          The new x, and the temporal keys and values of this block's new rows, [B, R, n, D] each.
        """
        config, layout, sites = self.config, self.layout, x.shape[2]
        spatial_dropout = temporal_dropout = None
        if dropout is not None:
            rows, every_site = dropout.rows, jnp.arange(sites)
            spatial_dropout = dropout.tokens(2 * number + SPATIAL, layout.part(rows, 0), every_site)
            temporal_dropout = dropout.tokens(2 * number + TEMPORAL, rows, layout.part(every_site, 0))
        x = checkpoint_name(x, BLOCK_INPUT)
        if conditioning is not None:
            x = x + conditioning
        attention = Attention(config, 'space', self.dtype, layout, name='spatial_attention')
        x = x + checkpoint_name(attention(layer_norm('spatial_norm')(x), None, None, spatial_dropout)[0], SUBLAYER)
        if config.mlp_layers == 'both':
            mlp = Mlp(config, self.dtype, layout, name='spatial_mlp')
            x = x + checkpoint_name(mlp(layer_norm('spatial_mlp_norm')(x), spatial_dropout), SUBLAYER)
        x = layout.to_sites(x)
        attention = Attention(config, 'time', self.dtype, layout, name='temporal_attention')
        past = None if cache is None else (cache, number)
        y, keys_values = attention(layer_norm('temporal_norm')(x), mask, past, temporal_dropout)
        x = x + checkpoint_name(y, SUBLAYER)
        mlp = Mlp(config, self.dtype, layout, name='temporal_mlp')
        x = x + mlp(layer_norm('temporal_mlp_norm')(x), temporal_dropout)
        return layout.to_frames(x, sites), keys_values
