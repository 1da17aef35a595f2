"""MAR's diffusion head: a small adaptive-LayerNorm MLP that denoises one token given the trunk's output for it.

Dimension key: ... token rows, C token width, D trunk width, W head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import HeadConfig
from magi_jax.layers.blocks import LAYER_NORM_EPS, dense, layer_norm

TIMESTEP_CHANNELS = 256


def timestep_embedding(t: jax.Array) -> jax.Array:
    """int [...] -> float32 [..., 256]: cosines then sines of t / 10000^(k/128)."""
    half = TIMESTEP_CHANNELS // 2
    frequency = 10000.0 ** (-jnp.arange(half) / half)
    angle = jnp.einsum('...,k->...k', t.astype(jnp.float32), frequency)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _linear(features: int, axes: tuple[str, str], dtype: Any, name: str, init: Any) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        name=name,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
    )


class ResidualBlock(nn.Module):
    """x += gate * MLP(LN(x) * (1 + scale) + shift), all three modulations from the condition; starts as the identity."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        modulation = _linear(3 * self.width, ('embed', 'mlp'), self.dtype, 'modulation', zeros)(nn.silu(condition))
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        h = layer_norm('norm')(x) * (1 + scale) + shift
        h = nn.silu(dense(self.width, ('embed', 'mlp'), self.dtype, 'up')(h))
        return x + gate * dense(self.width, ('mlp', 'embed'), self.dtype, 'down')(h)


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
        time = _linear(width, ('timestep', 'embed'), dtype, 'time_in', small)(timestep_embedding(t))
        time = _linear(width, ('mlp', 'embed'), dtype, 'time_out', small)(nn.silu(time))
        condition = time + dense(width, ('mlp', 'embed'), dtype, 'condition')(z)
        h = dense(width, ('token', 'embed'), dtype, 'token_in')(x)
        for index in range(self.config.blocks):
            h = ResidualBlock(width, dtype, name=f'block_{index}')(h, condition)
        modulation = _linear(2 * width, ('embed', 'mlp'), dtype, 'final_modulation', zeros)(nn.silu(condition))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        norm = nn.LayerNorm(
            epsilon=LAYER_NORM_EPS, use_bias=False, use_scale=False, dtype=jnp.float32, name='final_norm'
        )
        h = norm(h) * (1 + scale) + shift
        output = _linear(2 * self.token_width, ('embed', 'token'), dtype, 'final', zeros)
        return output(h).astype(jnp.float32)
