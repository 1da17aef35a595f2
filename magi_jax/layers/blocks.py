"""The trunk: blocks of one spatial and one temporal pre-LN transformer layer, scanned over depth (MAGI §A.1, ViT/MAR).

Dimension key: L blocks, B clips, R rows (frames in the sequence), S key rows (cached + own), N sites, D width, H heads;
r, n: the part of R, N that this device holds (all of it, unless a layout says otherwise).
"""

from typing import Any, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from magi_jax.config import ModelConfig, Remat
from magi_jax.layers.cached_attention import cached_attention
from magi_jax.layers.dropout import ClipDropout, Draws, TokenDropout, drop, dropped_gelu
from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import WHOLE, Layout
from magi_jax.layers.linear import MATRICES, PRODUCT, Linear, gelu, layer_norm
from magi_jax.layers.self_attention import DENOMINATOR, OUTPUT, self_attention, with_gradient_for_weights
from magi_jax.layers.site_tiles import SiteTiles, site_tiles

Array = jax.Array
policies = jax.checkpoint_policies
KeysValues = tuple[Array, Array]
Past = tuple[KVCache, Array]  # earlier frames, and the number of the block that reads its part of them

SPATIAL, TEMPORAL = 0, 1  # layers of a block, and within a layer the purposes of dropout:
WEIGHTS, ATTENDED, HIDDEN, MLP_OUT = range(4)
SUBLAYER, BLOCK_INPUT = 'sublayer', 'block_input'  # names that remat policies speak of
# Config train.remat -> what the forward pass keeps for the backward pass, from most memory to least. Weights that were
# gathered from other devices are gathered again; only 'none', which is no rematerialisation, keeps them.
POLICIES = {
    'dots': policies.save_only_these_names(PRODUCT, OUTPUT, DENOMINATOR),  # products with weights; attention in space
    'named': policies.save_only_these_names(SUBLAYER, DENOMINATOR),  # what the sublayers add to the residual stream
    'block': policies.save_only_these_names(DENOMINATOR),  # the input of each block
    'offload': policies.save_and_offload_only_these_names(  # the same, in the host's memory
        names_which_can_be_saved=[DENOMINATOR],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src='device',
        offload_dst='pinned_host',
    ),
}


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after each."""

    config: ModelConfig
    dtype: Any
    layout: Layout = WHOLE

    @nn.compact
    def __call__(self, x: Array, dropout: TokenDropout | None) -> Array:
        hidden = self.config.mlp_width // self.layout.splits
        x = Linear(hidden, ('embed', 'mlp'), self.dtype, name='up')(x)
        if dropout is None:
            x = gelu(x)
        else:
            features = self.layout.own_split(jnp.arange(self.config.mlp_width), 0)
            x = dropped_gelu(x, dropout.draws(HIDDEN, features), dropout.rate)
        down = Linear(self.config.width, ('mlp', 'embed'), self.dtype, then=self.layout.sum_splits, name='down')
        return drop(down(x), dropout, MLP_OUT)


class Attention(nn.Module):
    """Multi-head self-attention over one axis, with optional cached frames in front of the own rows."""

    config: ModelConfig
    axis: Literal['space', 'time']
    dtype: Any
    layout: Layout = WHOLE

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, past: Past | None, dropout: TokenDropout | None) -> Any:
        """x [B,r,n,D], mask [R,S] | None -> (output [B,r,n,D], own (k, v) [B,r,n,D]). No dropout behind a past."""
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
                k, v = self.layout.all_sites(k), self.layout.all_sites(v)
            q, k, v = (einops.rearrange(t, 'b r n (h d) -> b r n h d', h=heads) for t in (q, k, v))
            rate = 0.0 if dropout is None else dropout.rate
            # In float32 the kernels' products would not be exact.
            fused = self.layout.fused and self.dtype == jnp.bfloat16
            x = self_attention(q, k, v, mask, self._draws(tiles, k.shape[2], dropout), rate, fused)
            x = einops.rearrange(x, 'b r n h d -> b r n (h d)')
        x = Linear(self.config.width, ('heads', 'embed'), self.dtype, then=self.layout.sum_splits, name='out')(x)
        if tiles is not None:
            x, own_k, own_v = (tiles.unpack(t) for t in (x, own_k, own_v))
        return drop(x, dropout, ATTENDED), (own_k, own_v)

    def _draws(self, tiles: SiteTiles | None, sites: int, dropout: TokenDropout | None) -> Draws | None:
        """Of dropout on the weights; in time a draw belongs to the number of the key's row, not to its place."""
        if dropout is None:
            return None
        words, keys, count = dropout.words(WEIGHTS), jnp.arange(sites), sites
        if tiles is not None:
            words, keys, count = tuple(map(tiles.pack, words)), tiles.keys(dropout.rows), dropout.numbers
        heads = self.layout.own_split(jnp.arange(self.config.heads), 0)
        features = heads[:, None, None] * count + keys[None, None]
        return tuple(word[:, :, None, :, None] for word in words), features[None, None]


class Block(nn.Module):
    """One spatial and one temporal layer: x += Attn(LN(x)); x += MLP(LN(x)) each."""

    config: ModelConfig
    dtype: Any
    layout: Layout = WHOLE

    @nn.compact
    def __call__(
        self,
        x: Array,
        cache: KVCache | None,
        number: Array,
        mask: Array,
        conditioning: Array | None,
        dropout: ClipDropout | None,
    ) -> tuple[Array, KeysValues]:
        """One step of the scan over depth.

        Args:
          x: [B, r, N, D] float32 residual stream (N of whole frames in training, n when sampling).
          cache: earlier frames, all blocks' parts of them, or None.
          number: int32, of this block.
          mask: bool [R, F + R], which key rows a row may see in the temporal layer.
          conditioning: [B, r, N or 1, D] added before the layers (A11), or None.
          dropout: None = none.

        Returns:
          The new x and this block's own temporal keys and values [B, R, n, D].
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


class Trunk(nn.Module):
    """`config.blocks` blocks under one `nn.scan`: parameters are stacked [L, ...], `unroll` bodies are compiled."""

    config: ModelConfig
    dtype: Any
    remat: Remat = 'none'
    unroll: int = 1
    layout: Layout = WHOLE

    @nn.compact
    def __call__(
        self, x: Array, cache: KVCache | None, mask: Array, conditioning: Array | None, dropout: ClipDropout | None
    ) -> tuple[Array, KeysValues]:
        """As `Block`, the returned keys and values stacked over depth: [L, B, R, n, D]."""
        body = Block
        if self.layout is not WHOLE:
            body = nn.map_variables(body, 'params', trans_in_fn=self._gather, mutable=False)
        if self.remat != 'none':
            # Only a loop keeps a compiler from finding again, in the backward pass, what the forward pass computed.
            unrolled = self.unroll >= self.config.blocks
            body = nn.remat(body, prevent_cse=unrolled, policy=POLICIES[self.remat])
        stack = nn.scan(
            body,
            variable_axes={'params': 0, MATRICES: 0, 'intermediates': 0},  # intermediates: only where a caller captures
            split_rngs={'params': True},
            in_axes=(nn.broadcast, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.blocks,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        blocks = stack(self.config, self.dtype, self.layout, name='blocks')
        return blocks(x, cache, jnp.arange(self.config.blocks), mask, conditioning, dropout)

    def _gather(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {'params': self.layout.gather_block(variables['params'])}
