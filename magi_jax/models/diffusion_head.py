"""MAR's diffusion head: a small adaptive-LayerNorm MLP that denoises one token, conditioned on the trunk output.

Dimension key: ... token rows, C token width, D trunk width, W head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import HeadConfig
from magi_jax.layers.linear import Linear, layer_norm

Array = jax.Array

TIMESTEP_CHANNELS = 256


def timestep_embedding(t: Array) -> Array:
    """Embed timesteps int [...] as float32 [..., 256]: cosines then sines of t / 10000^(k/128)."""
    half = TIMESTEP_CHANNELS // 2
    frequency = 10000.0 ** (-jnp.arange(half) / half)
    angle = jnp.einsum('...,k->...k', t.astype(jnp.float32), frequency)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class ResidualBlock(nn.Module):
    """x += gate * MLP(LN(x) * (1 + scale) + shift).

    The condition gives gate, scale, shift; an untrained block is the identity.
    """

    width: int
    dtype: Any

    def setup(self) -> None:
        zeros = nn.initializers.zeros
        self.modulation = Linear(3 * self.width, ('embed', None), self.dtype, zeros)
        self.norm = layer_norm('norm')
        self.up = Linear(self.width, ('embed', None), self.dtype)
        self.down = Linear(self.width, (None, 'embed'), self.dtype)

    def __call__(self, x: Array, shift: Array, scale: Array, gate: Array) -> Array:
        """Apply the block.

        All arguments are [..., W]; the last three come from `modulation` of the activated condition.
        """
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.down(nn.silu(self.up(h)))


class DiffusionHead(nn.Module):
    """Maps noisy token, timestep and trunk output to (prediction | variance logits). It is initialised to output zeros.

    Most of the work does not depend on the noisy token, so the sampler does it once: `embed_time` for all tokens,
    `condition` for each token, `modulate` for many timesteps together. Training calls the module.
    """

    config: HeadConfig
    token_width: int
    dtype: Any

    def setup(self) -> None:
        width, dtype = self.config.width, self.dtype
        small, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        self.time_in = Linear(width, ('timestep', 'embed'), dtype, small)
        self.time_out = Linear(width, (None, 'embed'), dtype, small)
        self.condition_in = Linear(width, (None, 'embed'), dtype, name='condition')
        self.token_in = Linear(width, ('token', 'embed'), dtype)
        self.blocks = [ResidualBlock(width, dtype, name=f'block_{index}') for index in range(self.config.blocks)]
        self.final_modulation = Linear(2 * width, ('embed', None), dtype, zeros)
        self.final_norm = layer_norm('final_norm', affine=False)
        self.final = Linear(2 * self.token_width, ('embed', 'token'), dtype, zeros)
        if self.config.readout:
            self.readout = Linear(self.token_width, (None, 'token'), dtype, zeros)

    def __call__(self, x: Array, t: Array, z: Array) -> Array:
        """Map x [..., C], t int [...], z [..., D] to float32 [..., 2C]. Leading axes broadcast."""
        condition, readout = self.condition(z)
        return self.denoise(x, self.modulate(self.embed_time(t), condition), readout)

    def embed_time(self, t: Array) -> Array:
        """Map timesteps int [...] to their part of the condition [..., W]."""
        return self.time_out(nn.silu(self.time_in(timestep_embedding(t))))

    def condition(self, z: Array) -> tuple[Array, Array | None]:
        """Map z [..., D] to its part of the condition [..., W] and, with `readout`, of the prediction [..., C]."""
        return self.condition_in(z), self.readout(z) if self.config.readout else None

    def modulate(self, time: Array, condition: Array) -> list[list[Array]]:
        """Return the modulations, [..., W] each: shift, scale, gate of every block; shift, scale of the final layer."""
        activated = nn.silu(time + condition)
        layers = [*(block.modulation for block in self.blocks), self.final_modulation]
        return [jnp.split(layer(activated), layer.features // self.config.width, axis=-1) for layer in layers]

    def denoise(self, x: Array, modulations: list[list[Array]], readout: Array | None) -> Array:
        """Map noisy tokens x [..., C] to float32 [..., 2C] with the modulations and readout of the other methods."""
        h = self.token_in(x)
        for block, modulation in zip(self.blocks, modulations):
            h = block(h, *modulation)
        shift, scale = modulations[-1]
        output = self.final(self.final_norm(h) * (1 + scale) + shift)
        if readout is not None:
            output += jnp.pad(readout, [(0, 0)] * (readout.ndim - 1) + [(0, self.token_width)])
        return output.astype(jnp.float32)
