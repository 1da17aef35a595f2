"""The trunk: blocks of one spatial and one temporal pre-LN transformer layer, scanned over depth (MAGI §A.1, ViT/MAR).

Dimension key: L blocks, B clips, R rows (frames in the sequence), S key rows (cached + own), N sites, D width, H heads.
"""

from typing import Any, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import ModelConfig
from magi_jax.layers.attention import attention_weights, weighted_values
from magi_jax.layers.linear import Linear, layer_norm

Array = jax.Array
KeysValues = tuple[Array, Array]


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after each."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        dropout = nn.Dropout(self.config.dropout, deterministic=deterministic)
        x = Linear(self.config.mlp_width, ('embed', 'mlp'), self.dtype, name='up')(x)
        x = dropout(nn.gelu(x, approximate=False))
        return dropout(Linear(self.config.width, ('mlp', 'embed'), self.dtype, name='down')(x))


class Attention(nn.Module):
    """Multi-head self-attention over one axis, with optional cached keys and values in front of the own ones."""

    config: ModelConfig
    axis: Literal['space', 'time']
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, cached: KeysValues | None, deterministic: bool) -> Any:
        """x [B,R,N,D], mask [R,S] | None, cached [B,F,N,D] each | None -> (output [B,R,N,D], own (k, v) [B,R,N,D])."""
        dropout = nn.Dropout(self.config.dropout, deterministic=deterministic)
        qkv = Linear((3, self.config.width), ('embed', None, 'heads'), self.dtype, name='qkv')(x)
        q, own_k, own_v = (qkv[..., i, :] for i in range(3))
        k, v = own_k, own_v
        if cached is not None:
            k = jnp.concatenate([cached[0].astype(k.dtype), k], axis=1)
            v = jnp.concatenate([cached[1].astype(v.dtype), v], axis=1)
        q, k, v = (einops.rearrange(t, 'b r n (h d) -> b r n h d', h=self.config.heads) for t in (q, k, v))
        weights = dropout(attention_weights(q, k, mask, self.axis))
        x = einops.rearrange(weighted_values(weights, v, self.axis), 'b r n h d -> b r n (h d)')
        return dropout(Linear(self.config.width, ('heads', 'embed'), self.dtype, name='out')(x)), (own_k, own_v)


class Block(nn.Module):
    """One spatial and one temporal layer: x += Attn(LN(x)); x += MLP(LN(x)) each."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array, cached: KeysValues | None, mask: Array, conditioning: Array | None, deterministic: bool
    ) -> tuple[Array, KeysValues]:
        """One step of the scan over depth.

        Args:
          x: [B, R, N, D] float32 residual stream.
          cached: keys and values [B, F, N, D] of earlier frames at this depth, or None.
          mask: bool [R, F + R], which key rows a row may see in the temporal layer.
          conditioning: [B, R, N, D] added before the layers (A11), or None.
          deterministic: no dropout.

        Returns:
          The new x and this block's own temporal keys and values [B, R, N, D].
        """
        if conditioning is not None:
            x = x + conditioning
        spatial = Attention(self.config, 'space', self.dtype, name='spatial_attention')
        x = x + spatial(layer_norm('spatial_norm')(x), None, None, deterministic)[0]
        if self.config.mlp_layers == 'both':
            x = x + Mlp(self.config, self.dtype, name='spatial_mlp')(layer_norm('spatial_mlp_norm')(x), deterministic)
        temporal = Attention(self.config, 'time', self.dtype, name='temporal_attention')
        y, keys_values = temporal(layer_norm('temporal_norm')(x), mask, cached, deterministic)
        x = x + y
        x = x + Mlp(self.config, self.dtype, name='temporal_mlp')(layer_norm('temporal_mlp_norm')(x), deterministic)
        return x, keys_values


class Trunk(nn.Module):
    """`config.blocks` blocks under one `nn.scan`: parameters are stacked [L, ...], the body is compiled once."""

    config: ModelConfig
    dtype: Any
    remat: Literal['none', 'block']

    @nn.compact
    def __call__(
        self, x: Array, cached: KeysValues | None, mask: Array, conditioning: Array | None, deterministic: bool
    ) -> tuple[Array, KeysValues]:
        """As `Block`, with cached and returned keys and values stacked over depth: [L, B, F or R, N, D]."""
        body = Block
        if self.remat == 'block':
            body = nn.remat(Block, prevent_cse=False, static_argnums=(5,))
        stack = nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.blocks,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        return stack(self.config, self.dtype, name='blocks')(x, cached, mask, conditioning, deterministic)
