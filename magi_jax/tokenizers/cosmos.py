"""The Cosmos continuous video tokenizers (NVIDIA): causal in time, latents without variance.

They are CV8x8x8, CV4x8x8 and CV8x16x16. All sizes are those of the published weights. Only the width can be set, for
tests. The first latent frame encodes the first frame; every further one encodes 8 or 4 frames.

Dimension key: B clips, T frames, t latent frames, H W pixels, h w = H/8 W/8 or H/16 W/16, c latent channels, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers import haar
from magi_jax.tokenizers.cosmos_layers import Downsample, FrameNorm, MidBlock, Projection, ResidualBlock, Upsample

PATCH_CHANNELS = 3 * haar.SIDE**3
BLOCKS = 2  # residual blocks of an encoder level; the decoder has one more
# Axes that are halved after each encoder level, and doubled after each decoder level in the order they run. The
# wavelets already reduce every axis by 4. The decoder of CV4x8x8 has one level less.
SPACE, SPACETIME = 'H W', 'T H W'
RESAMPLED = {
    'cosmos_cv8x8x8': ((SPACETIME, '', ''), ('', SPACETIME, '')),
    'cosmos_cv4x8x8': ((SPACE, '', ''), (SPACE, '')),
    'cosmos_cv8x16x16': ((SPACETIME, SPACE, ''), (SPACE, SPACETIME, '')),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one of the tokenizers.

    Attributes:
      first: width of the first convolution of the encoder.
      encoder: widths D of the encoder levels.
      decoder: widths D of the decoder levels, in the order they run.
      halved: axes that are halved after each encoder level, a value of `RESAMPLED`.
      doubled: axes that are doubled after each decoder level.
      channels: c.
    """

    first: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    halved: tuple[str, ...]
    doubled: tuple[str, ...]
    channels: int


class Level(nn.Module):
    """Residual blocks of one width, then `resample` of `axes`, if there are any."""

    width: int
    blocks: int
    dtype: jnp.dtype
    axes: str
    resample: type[nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = ResidualBlock(self.width, self.dtype, name=f'resnets_{i}')(x)
        if not self.axes:
            return x
        name = 'downsamplers_0' if self.resample is Downsample else 'upsamplers_0'
        return self.resample(self.axes == SPACETIME, self.dtype, name=name)(x)


class Encoder(nn.Module):
    """Maps [B, T, H, W, 3] to [B, t, h, w, c]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        plan = self.plan
        x = Projection(plan.first, self.dtype, name='conv_in')(haar.patch(video))
        for i, (width, axes) in enumerate(zip(plan.encoder, plan.halved)):
            x = Level(width, BLOCKS, self.dtype, axes, Downsample, name=f'down_blocks_{i}')(x)
        x = nn.silu(FrameNorm(name='norm_out')(MidBlock(self.dtype, name='mid_block')(x)))
        return Projection(plan.channels, jnp.float32, name='conv_out')(x)


class Decoder(nn.Module):
    """Maps [B, t, h, w, c] to [B, T, H, W, 3]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        plan = self.plan
        x = Projection(plan.decoder[0], self.dtype, name='conv_in')(latents)
        x = MidBlock(self.dtype, name='mid_block')(x)
        for i, (width, axes) in enumerate(zip(plan.decoder, plan.doubled)):
            x = Level(width, BLOCKS + 1, self.dtype, axes, Upsample, name=f'up_blocks_{i}')(x)
        x = nn.silu(FrameNorm(name='norm_out')(x))
        return haar.unpatch(Projection(PATCH_CHANNELS, jnp.float32, name='conv_out')(x))


class CosmosTokenizer(nn.Module):
    """Encoder and decoder. Parameters, norms, latents and pixels are float32; convolutions compute in `dtype`."""

    plan: Plan
    dtype: jnp.dtype

    def setup(self) -> None:
        self.encoder, self.decoder = Encoder(self.plan, self.dtype), Decoder(self.plan, self.dtype)
        self.quant_conv, self.post_quant_conv = nn.Dense(self.plan.channels), nn.Dense(self.plan.channels)

    def encode(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode video [B, T, H, W, 3] in [-1, 1] to latents and log variance -inf, float32 [B, t, h, w, c]."""
        latents = self.quant_conv(self.encoder(video))
        return latents, jnp.full_like(latents, -jnp.inf)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents [B, t, h, w, c] to float32 [B, T, H, W, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, video: jax.Array) -> jax.Array:
        return self.decode(self.encode(video)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> CosmosTokenizer:
    """Build the module of `config`. Raise ConfigError for a downsample that the architecture does not have."""
    halved, doubled = RESAMPLED[config.kind]
    downsample = haar.SIDE * 2 ** len(list(filter(None, halved)))
    if config.downsample != downsample:
        raise ConfigError(f'tokenizer.downsample = {config.downsample}, but {config.kind} has {downsample}')
    width = config.width
    encoder = (2 * width, 4 * width, 4 * width)
    decoder = (4 * width, 4 * width, 2 * width)[-len(doubled) :]
    return CosmosTokenizer(Plan(width, encoder, decoder, halved, doubled, config.channels), dtype)
