"""A small convolutional KL autoencoder for frames: pixels in [-1, 1] to a Gaussian over latents and back.

The encoder runs inside every training step of a generator, also on CPUs. So its first convolution has a stride of one
latent and a window of two, and only the decoder works at a finer resolution. Without attention, positions and norms it
accepts any frame size.

Dimension key: F frames, H W pixels, f downsample, h w = H/f W/f, c latent channels, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from magi_jax.config import ConfigError, TokenizerConfig

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as in the latent diffusion autoencoders


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """Rearrange [F, h, w, factor*factor*d] to [F, h*factor, w*factor, d]."""
    return rearrange(x, 'F h w (p q d) -> F (h p) (w q) d', p=factor, q=factor)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))) with 3x3 convolutions.

    The last one starts at 0, so an untrained block is the identity.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (3, 3), dtype=self.dtype)(nn.silu(x))
        y = nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros)(nn.silu(y))
        return x + y


class Encoder(nn.Module):
    """Maps [F, H, W, 3] to [F, h, w, 2c], all at width D and at the resolution of the latents."""

    channels: int
    downsample: int
    width: int
    blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        stride, window = (self.downsample,) * 2, (2 * self.downsample,) * 2
        x = nn.Conv(self.width, window, stride, dtype=self.dtype)(frames)
        for _ in range(self.blocks):
            x = ResidualBlock(self.dtype)(x)
        return nn.Dense(2 * self.channels, dtype=jnp.float32)(nn.silu(x))


class Decoder(nn.Module):
    """Maps [F, h, w, c] to [F, H, W, 3]: width D at latent resolution, then one block of D/2 at twice that."""

    downsample: int
    width: int
    blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(latents)
        for _ in range(self.blocks):
            x = ResidualBlock(self.dtype)(x)
        x = depth_to_space(nn.Dense(2 * self.width, dtype=self.dtype)(nn.silu(x)), 2)
        x = ResidualBlock(self.dtype)(x)
        cell = self.downsample // 2
        return depth_to_space(nn.Conv(3 * cell * cell, (3, 3), dtype=jnp.float32)(nn.silu(x)), cell)


class AutoencoderKL(nn.Module):
    """Encoder and decoder. Parameters, moments and pixels are float32; convolutions compute in `dtype`."""

    channels: int
    downsample: int
    width: int
    encoder_blocks: int
    decoder_blocks: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.encoder = Encoder(self.channels, self.downsample, self.width, self.encoder_blocks, self.dtype)
        self.decoder = Decoder(self.downsample, self.width, self.decoder_blocks, self.dtype)

    def encode(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode frames [F, H, W, 3] in [-1, 1] to posterior mean and log variance, float32 [F, h, w, c] each."""
        mean, log_variance = jnp.split(self.encoder(frames), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents [F, h, w, c] to float32 [F, H, W, 3], not clipped."""
        return self.decoder(latents)

    def __call__(self, frames: jax.Array) -> jax.Array:
        return self.decode(self.encode(frames)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> AutoencoderKL:
    """Build the module of `config`; raise ConfigError for a bad downsample factor or an odd width."""
    factor = config.downsample
    if factor < 2 or factor & (factor - 1):
        raise ConfigError(f'tokenizer.downsample = {factor} must be a power of two, 2 or more, for autoencoder_kl')
    if config.width < 2 or config.width % 2:
        raise ConfigError(f'tokenizer.width = {config.width} must be even: the finer grid has half of it')
    blocks = config.encoder_blocks, config.decoder_blocks
    return AutoencoderKL(config.channels, factor, config.width, *blocks, dtype)
