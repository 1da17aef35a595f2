"""The KL autoencoder of latent diffusion, for frames: Stable Diffusion 1.4 (`sd_vae`) and MAR's KL-16 (`kl16`).

All sizes are those of the published weights. Only the width can be set, for tests. Modules are named as in diffusers'
AutoencoderKL, with `_` for `.` before an index; convert/ relies on the names.

Dimension key: F frames, H W pixels, f downsample, h w rows and columns at some level, c latent channels, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import einsum, rearrange, repeat

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers.autoencoder_kl import LOG_VARIANCE_RANGE

GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one of the two autoencoders.

    Attributes:
      widths: D of each level, finest first; the frame is halved between levels.
      channels: c.
      last_attention: attention after the residual blocks of the encoder's coarsest level too.
      blocks: residual blocks of a level; the decoder has one more.
    """

    widths: tuple[int, ...]
    channels: int
    last_attention: bool
    blocks: int = 2


MULTIPLIERS = {'sd_vae': (1, 2, 4, 4), 'kl16': (1, 1, 2, 2, 4)}


def norm(x: jax.Array, name: str) -> jax.Array:
    """Apply GroupNorm in float32, with the two-pass variance that agrees with the published numbers."""
    return nn.GroupNorm(GROUPS, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, name=name)(x)


class ResidualBlock(nn.Module):
    """Maps [F, h, w, D'] to [F, h, w, D]: twice norm, SiLU, 3x3, plus the (1x1 mapped) input."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name='conv1')(nn.silu(norm(x, 'norm1')))
        y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name='conv2')(nn.silu(norm(y, 'norm2')))
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name='conv_shortcut')(x)
        return x + y


class Attention(nn.Module):
    """Adds one head of attention over the frame to [F, h, w, D]; the softmax is in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = rearrange(norm(x, 'group_norm'), 'F h w D -> F (h w) D')
        q, k, v = (nn.Dense(width, dtype=self.dtype, name=name)(y) for name in ('to_q', 'to_k', 'to_v'))
        scores = einsum(q, k, 'F q D, F k D -> F q k').astype(jnp.float32) * width**-0.5
        y = einsum(nn.softmax(scores).astype(self.dtype), v, 'F q k, F k D -> F q D')
        y = nn.Dense(width, dtype=self.dtype, name='to_out_0')(y)
        return x + rearrange(y, 'F (h w) D -> F h w D', h=x.shape[1])


class MidBlock(nn.Module):
    """Maps [F, h, w, D] to the same shape: residual block, attention, residual block."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResidualBlock(x.shape[-1], self.dtype, name='resnets_0')(x)
        x = Attention(self.dtype, name='attentions_0')(x)
        return ResidualBlock(x.shape[-1], self.dtype, name='resnets_1')(x)


class Downsample(nn.Module):
    """Maps [F, h, w, D] to [F, h/2, w/2, D] by a strided 3x3 convolution, padded at the end of each axis only."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1))
        return nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=padding, dtype=self.dtype, name='conv')(x)


class Upsample(nn.Module):
    """Maps [F, h, w, D] to [F, 2h, 2w, D]: repeats every value four times, then a 3x3 convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = repeat(x, 'F h w D -> F (h p) (w q) D', p=2, q=2)
        return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name='conv')(x)


class Level(nn.Module):
    """Residual blocks of one width, each followed by attention if asked for, then a change of resolution if given."""

    width: int
    blocks: int
    dtype: jnp.dtype
    attention: bool = False
    resample: type[nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = ResidualBlock(self.width, self.dtype, name=f'resnets_{i}')(x)
            if self.attention:
                x = Attention(self.dtype, name=f'attentions_{i}')(x)
        if self.resample is None:
            return x
        name = 'downsamplers_0' if self.resample is Downsample else 'upsamplers_0'
        return self.resample(self.dtype, name=name)(x)


class Encoder(nn.Module):
    """Maps [F, H, W, 3] to [F, h, w, 2c]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        plan, last = self.plan, len(self.plan.widths) - 1
        x = nn.Conv(plan.widths[0], (3, 3), dtype=self.dtype, name='conv_in')(frames)
        for i, width in enumerate(plan.widths):
            attention, resample = plan.last_attention and i == last, Downsample if i < last else None
            x = Level(width, plan.blocks, self.dtype, attention, resample, name=f'down_blocks_{i}')(x)
        x = nn.silu(norm(MidBlock(self.dtype, name='mid_block')(x), 'conv_norm_out'))
        return nn.Conv(2 * plan.channels, (3, 3), dtype=jnp.float32, name='conv_out')(x)


class Decoder(nn.Module):
    """Maps [F, h, w, c] to [F, H, W, 3]."""

    plan: Plan
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        plan, last = self.plan, len(self.plan.widths) - 1
        x = nn.Conv(plan.widths[-1], (3, 3), dtype=self.dtype, name='conv_in')(latents)
        x = MidBlock(self.dtype, name='mid_block')(x)
        for i, width in enumerate(reversed(plan.widths)):
            resample = Upsample if i < last else None
            x = Level(width, plan.blocks + 1, self.dtype, False, resample, name=f'up_blocks_{i}')(x)
        x = nn.silu(norm(x, 'conv_norm_out'))
        return nn.Conv(3, (3, 3), dtype=jnp.float32, name='conv_out')(x)


class LatentDiffusionVAE(nn.Module):
    """Encoder and decoder. Parameters, norms, moments and pixels are float32; convolutions compute in `dtype`."""

    plan: Plan
    dtype: jnp.dtype

    def setup(self) -> None:
        self.encoder, self.decoder = Encoder(self.plan, self.dtype), Decoder(self.plan, self.dtype)
        self.quant_conv, self.post_quant_conv = nn.Dense(2 * self.plan.channels), nn.Dense(self.plan.channels)

    def encode(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode frames [F, H, W, 3] in [-1, 1] to posterior mean and log variance, float32 [F, h, w, c] each."""
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(frames)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents [F, h, w, c] to float32 [F, H, W, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, frames: jax.Array) -> jax.Array:
        return self.decode(self.encode(frames)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> LatentDiffusionVAE:
    """Build the module of `config`; raise ConfigError for a bad downsample factor or width."""
    multipliers = MULTIPLIERS[config.kind]
    if config.downsample != (factor := 2 ** (len(multipliers) - 1)):
        raise ConfigError(f'tokenizer.downsample = {config.downsample}, but {config.kind} has {factor}')
    if config.width % GROUPS:
        raise ConfigError(f'tokenizer.width = {config.width} must be a multiple of {GROUPS} for {config.kind}')
    widths = tuple(config.width * multiplier for multiplier in multipliers)
    return LatentDiffusionVAE(Plan(widths, config.channels, config.kind == 'kl16'), dtype)
