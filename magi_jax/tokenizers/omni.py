"""OmniTokenizer's video VAE: transformers in space, then in time; 1 + 4n frames become 1 + n latent frames.

Although its attention is causal, latents depend on later frames (omni_layers.py explains why). So the latents of a
context are those of the context encoded alone.

Dimension key: B clips, T frames, t = 1 + (T - 1) / 4, H W pixels, h w = H/8 W/8, c latent channels, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers.autoencoder_kl import LOG_VARIANCE_RANGE
from magi_jax.tokenizers.omni_layers import HEADS, WINDOW, Transformer

SIDE, STRIDE = 8, 4  # pixels and frames of a token
SQUARE = SIDE * WINDOW  # frames are square, of whole windows
FIRST = 'B 1 (h p) (w q) d -> B 1 h w (d p q)'
REST = 'B (t s) (h p) (w q) d -> B t h w (d s p q)'


def embed(patches: jax.Array, width: int, dtype: jnp.dtype, name: str) -> jax.Array:
    """Embed patches [..., P] as tokens [..., D]: norm, linear map, norm."""
    for part in (1, 2, 3):
        if part == 2:
            patches = nn.Dense(width, dtype=dtype, name=f'{name}_2')(patches)
        else:
            norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=f'{name}_{part}')
            patches = norm(patches)
    return patches


class Encoder(nn.Module):
    """Maps [B, T, H, W, 3] to [B, t, h, w, D]."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        first = rearrange(video[:, :1], FIRST, p=SIDE, q=SIDE)
        rest = rearrange(video[:, 1:], REST, s=STRIDE, p=SIDE, q=SIDE)
        first = embed(first, self.width, self.dtype, 'to_patch_emb_first_frame')
        rest = embed(rest, self.width, self.dtype, 'to_patch_emb')
        x = jnp.concatenate([first, rest], axis=1)
        x = Transformer('ttww', False, self.dtype, name='enc_spatial_transformer')(x)
        return Transformer('tttt', True, self.dtype, name='enc_temporal_transformer')(x)


class Decoder(nn.Module):
    """Maps [B, t, h, w, D] to [B, T, H, W, 3]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Transformer('tttt', True, self.dtype, name='dec_temporal_transformer')(x)
        x = Transformer('tttt', False, self.dtype, name='dec_spatial_transformer')(x)
        first = nn.Dense(3 * SIDE**2, name='to_pixels_first_frame_0')(x[:, :1])
        rest = nn.Dense(3 * STRIDE * SIDE**2, name='to_pixels_0')(x[:, 1:])
        turned = (' -> '.join(reversed(pattern.split(' -> '))) for pattern in (FIRST, REST))
        first = rearrange(first, next(turned), p=SIDE, q=SIDE)
        return jnp.concatenate([first, rearrange(rest, next(turned), s=STRIDE, p=SIDE, q=SIDE)], axis=1)


class OmniTokenizer(nn.Module):
    """Encoder and decoder. Parameters, norms, moments and pixels are float32; matrices multiply in `dtype`."""

    channels: int
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.encoder, self.decoder = Encoder(self.width, self.dtype), Decoder(self.dtype)
        self.pre_vq_conv_1, self.post_vq_conv_1 = nn.Dense(2 * self.channels), nn.Dense(self.width)

    def encode(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode video [B, T, H, W, 3] in [-1, 1] to posterior mean and log variance, float32 [B, t, h, w, c] each."""
        mean, log_variance = jnp.split(self.pre_vq_conv_1(self.encoder(video / 2)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents [B, t, h, w, c] to float32 [B, T, H, W, 3], not clipped.

        The module itself works on pixels of half the range.
        """
        return 2 * self.decoder(self.post_vq_conv_1(latents))

    def __call__(self, video: jax.Array) -> jax.Array:
        return self.decode(self.encode(video)[0])


def build(config: TokenizerConfig, dtype: jnp.dtype) -> OmniTokenizer:
    """Build the module of `config`; raise ConfigError for a bad downsample factor or width."""
    if config.downsample != SIDE:
        raise ConfigError(f'tokenizer.downsample = {config.downsample}, but omni has {SIDE}')
    if config.width % (4 * HEADS):
        raise ConfigError(f'tokenizer.width = {config.width} must be a multiple of {4 * HEADS} for omni')
    return OmniTokenizer(config.channels, config.width, dtype)
