"""MAR's diffusion head: a small adaptive-LayerNorm MLP that denoises one token given the trunk's output for it.

Dimension key: ... token rows, C token width, D trunk width, W head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import HeadConfig
from magi_jax.layers.linear import Linear, layer_norm

TIMESTEP_CHANNELS = 256


def timestep_embedding(t: jax.Array) -> jax.Array:
    """int [...] -> float32 [..., 256]: cosines then sines of t / 10000^(k/128)."""
    half = TIMESTEP_CHANNELS // 2
    frequency = 10000.0 ** (-jnp.arange(half) / half)
    angle = jnp.einsum('...,k->...k', t.astype(jnp.float32), frequency)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class ResidualBlock(nn.Module):
    """x += gate * MLP(LN(x) * (1 + scale) + shift), modulated by the condition; starts as the identity."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        modulation = Linear(3 * self.width, ('embed', None), self.dtype, zeros, name='modulation')(nn.silu(condition))
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        h = layer_norm('norm')(x) * (1 + scale) + shift
        h = nn.silu(Linear(self.width, ('embed', None), self.dtype, name='up')(h))
        return x + gate * Linear(self.width, (None, 'embed'), self.dtype, name='down')(h)


class DiffusionHead(nn.Module):
    """(noisy token, timestep, trunk output) -> (prediction | variance logits). Outputs zeros at initialisation."""

    config: HeadConfig
    token_width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """x [..., C], t int [...], z [..., D] -> float32 [..., 2C]."""
        width, dtype = self.config.width, self.dtype
        small, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        time = Linear(width, ('timestep', 'embed'), dtype, small, name='time_in')(timestep_embedding(t))
        time = Linear(width, (None, 'embed'), dtype, small, name='time_out')(nn.silu(time))
        condition = time + Linear(width, (None, 'embed'), dtype, name='condition')(z)
        h = Linear(width, ('token', 'embed'), dtype, name='token_in')(x)
        for index in range(self.config.blocks):
            h = ResidualBlock(width, dtype, name=f'block_{index}')(h, condition)
        modulation = Linear(2 * width, ('embed', None), dtype, zeros, name='final_modulation')(nn.silu(condition))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = layer_norm('final_norm', affine=False)(h) * (1 + scale) + shift
        output = Linear(2 * self.token_width, ('embed', 'token'), dtype, zeros, name='final')(h)
        if self.config.readout:
            readout = Linear(self.token_width, (None, 'token'), dtype, zeros, name='readout')(z)
            output += jnp.pad(readout, [(0, 0)] * (z.ndim - 1) + [(0, self.token_width)])
        return output.astype(jnp.float32)
