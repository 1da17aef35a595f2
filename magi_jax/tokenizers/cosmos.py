"""The Cosmos continuous video tokenizers CV8x8x8 and CV4x8x8 (NVIDIA): causal in time, latents without a variance.

The numbers are those of the published weights, so nothing here is free but the width, which tests shrink. One latent
frame stands for the first frame, every further one for 8 or 4.

Dimension key: B clips, T frames, t latent frames, H W pixels, h w = H/8 W/8, c latent channels, D width.
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What distinguishes the two; the wavelets have shrunk every axis by 4 before, so one halving or none remains.

    Attributes:
      first: width of the encoder's first convolution.
      encoder: D of its levels; frames are halved after the first.
      decoder: D of its levels, in the order they run. CV4x8x8 has one less: so do the published weights.
      upsample_after: index of the decoder level after which frames are doubled.
      channels: c.
      time: whether time is halved and doubled along with space.
    """

    first: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    upsample_after: int
    channels: int
    time: bool


class Level(nn.Module):
    """Residual blocks of one width, then `resample`, of space and perhaps time, or nothing."""

    width: int
    blocks: int
    dtype: jnp.dtype
    time: bool
    resample: type[nn.Module] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = ResidualBlock(self.width, self.dtype, name=f'resnets_{i}')(x)
        if self.resample is None:
            return x
        name = 'downsamplers_0' if self.resample is Downsample else 'upsamplers_0'
        return self.resample(self.time, self.dtype, name=name)(x)


class Encoder(nn.Module):
    """[B, T, H, W, 3] -> [B, t, h, w, c]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        plan = self.plan
        x = Projection(plan.first, self.dtype, name='conv_in')(haar.patch(video))
        for i, width in enumerate(plan.encoder):
            resample = None if i else Downsample
            x = Level(width, BLOCKS, self.dtype, plan.time, resample, name=f'down_blocks_{i}')(x)
        x = nn.silu(FrameNorm(name='norm_out')(MidBlock(self.dtype, name='mid_block')(x)))
        return Projection(plan.channels, jnp.float32, name='conv_out')(x)


class Decoder(nn.Module):
    """[B, t, h, w, c] -> [B, T, H, W, 3]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        plan = self.plan
        x = Projection(plan.decoder[0], self.dtype, name='conv_in')(latents)
        x = MidBlock(self.dtype, name='mid_block')(x)
        for i, width in enumerate(plan.decoder):
            resample = Upsample if i == plan.upsample_after else None
            x = Level(width, BLOCKS + 1, self.dtype, plan.time, resample, name=f'up_blocks_{i}')(x)
        x = nn.silu(FrameNorm(name='norm_out')(x))
        return haar.unpatch(Projection(PATCH_CHANNELS, jnp.float32, name='conv_out')(x))


class CosmosTokenizer(nn.Module):
    """Both halves. Parameters are float32, convolutions compute in `dtype`; norms, latents and pixels are float32."""

    plan: Plan
    dtype: jnp.dtype

    def setup(self) -> None:
        self.encoder, self.decoder = Encoder(self.plan, self.dtype), Decoder(self.plan, self.dtype)
        self.quant_conv, self.post_quant_conv = nn.Dense(self.plan.channels), nn.Dense(self.plan.channels)

    def encode(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, H, W, 3] in [-1, 1] -> latents, and -inf for their log variance; float32 [B, t, h, w, c] each."""
        latents = self.quant_conv(self.encoder(video))
        return latents, jnp.full_like(latents, -jnp.inf)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[B, t, h, w, c] -> float32 [B, T, H, W, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, video: jax.Array) -> jax.Array:
        return self.decode(self.encode(video)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> CosmosTokenizer:
    """Raises ConfigError for a downsample that the architecture does not have."""
    if config.downsample != 2 * haar.SIDE:
        raise ConfigError(f'tokenizer.downsample = {config.downsample}, but {config.kind} has {2 * haar.SIDE}')
    width = config.width
    encoder, time = (2 * width, 4 * width, 4 * width), config.kind == 'cosmos_cv8x8x8'
    decoder = (4 * width, 4 * width, 2 * width) if time else (4 * width, 2 * width)
    return CosmosTokenizer(Plan(width, encoder, decoder, len(decoder) - 2, config.channels, time), dtype)
