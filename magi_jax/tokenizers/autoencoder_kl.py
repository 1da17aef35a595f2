"""A small convolutional KL autoencoder, frame by frame: pixels [-1, 1] <-> a diagonal Gaussian over latents.

The encoder runs inside every training step of a generator, also on CPUs. So its first convolution strides straight to
the latents' grid (with windows of two cells: neighbours overlap), and only the decoder works on a finer one. No
attention, positions or norms: any resolution works.

Dimension key: F frames, H W pixels, f downsample, h w = H/f W/f, c latent channels, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from magi_jax.config import ConfigError, TokenizerConfig

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as in the latent diffusion autoencoders


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """[F, h, w, factor*factor*d] -> [F, h*factor, w*factor, d]."""
    return rearrange(x, 'F h w (p q d) -> F (h p) (w q) d', p=factor, q=factor)


class ResidualBlock(nn.Module):
    """SiLU, 3x3, SiLU, 3x3, plus the input. The last convolution starts at 0: an untrained block is the identity."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (3, 3), dtype=self.dtype)(nn.silu(x))
        y = nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros)(nn.silu(y))
        return x + y


class Encoder(nn.Module):
    """[F, H, W, 3] -> [F, h, w, 2c], all at width D on the latents' grid."""

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
    """[F, h, w, c] -> [F, H, W, 3]: width D on the latents' grid, then one block of width D/2 on one twice as fine."""

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
    """Both halves. Parameters are float32, convolutions compute in `dtype`, moments and pixels come out in float32."""

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
        """[F, H, W, 3] in [-1, 1] -> posterior mean and log variance, float32 [F, h, w, c] each."""
        mean, log_variance = jnp.split(self.encoder(frames), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[F, h, w, c] -> float32 [F, H, W, 3], not clipped."""
        return self.decoder(latents)

    def __call__(self, frames: jax.Array) -> jax.Array:
        return self.decode(self.encode(frames)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> AutoencoderKL:
    """Raises ConfigError for a downsample that is not a power of two from 2 on, or an odd width."""
    factor = config.downsample
    if factor < 2 or factor & (factor - 1):
        raise ConfigError(f'tokenizer.downsample = {factor} must be a power of two, 2 or more, for autoencoder_kl')
    if config.width < 2 or config.width % 2:
        raise ConfigError(f'tokenizer.width = {config.width} must be even: the finer grid has half of it')
    blocks = config.encoder_blocks, config.decoder_blocks
    return AutoencoderKL(config.channels, factor, config.width, *blocks, dtype)
