"""Space-to-depth as a tokenizer without weights: exact and instant, for tests and for debugging a generator.

Dimension key: F frames, H W pixels, f downsample, h w = H/f W/f, c = 3 f f latent channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from magi_jax.config import ConfigError, TokenizerConfig


class Identity(nn.Module):
    """The interface of `AutoencoderKL`; the channels of a latent are the pixels of its cell."""

    downsample: int

    def encode(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rearrange frames [F, H, W, 3] to posterior mean and log variance [F, h, w, c]; the variance is exactly 0."""
        mean = rearrange(frames, 'F (h f) (w g) d -> F h w (f g d)', f=self.downsample, g=self.downsample)
        return mean, jnp.full_like(mean, -jnp.inf)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Rearrange latents [F, h, w, c] to frames [F, H, W, 3]."""
        return rearrange(latents, 'F h w (f g d) -> F (h f) (w g) d', f=self.downsample, g=self.downsample, d=3)

    def __call__(self, frames: jax.Array) -> jax.Array:
        return self.decode(self.encode(frames)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> Identity:
    """Build the module. Raise ConfigError unless `channels` is 3 * downsample**2."""
    channels = 3 * config.downsample**2
    if config.channels != channels:
        raise ConfigError(
            f'tokenizer.channels = {config.channels}, but identity with downsample {config.downsample} has {channels}'
        )
    return Identity(config.downsample)
