"""What the rest of the code knows of a tokenizer: video <-> normalised latents, as a pytree that jit takes as argument.

Dimension key: B clips, T frames, H W pixels, f downsample, h w = H/f W/f, c latent channels.
"""

import dataclasses
import hashlib
import json

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers import autoencoder_kl, identity

BUILDERS = {'autoencoder_kl': autoencoder_kl.build, 'identity': identity.build}


@flax.struct.dataclass
class Tokenizer:
    """A frozen tokenizer. Its latents are normalised: (latent - latent_mean) / latent_std, channel by channel."""

    params: dict
    latent_mean: jax.Array  # float32 [c]
    latent_std: jax.Array  # float32 [c]
    config: TokenizerConfig = flax.struct.field(pytree_node=False)

    def moments(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, T, H, W, 3] in [-1, 1] -> posterior mean and log variance [B, T, h, w, c], not normalised."""
        frames = rearrange(video, 'B T H W d -> (B T) H W d')
        moments = self._apply('encode', frames)
        return tuple(rearrange(x, '(B T) h w c -> B T h w c', B=video.shape[0]) for x in moments)

    def encode(self, video: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """float32 [B, T, H, W, 3] in [-1, 1] -> normalised latents, float32 [B, T, h, w, c].

        Args:
          video: the clips; H and W multiples of the downsample factor (else ConfigError).
          noise: standard normal [B, T, h, w, c] makes of it a posterior sample; None gives the posterior mean.
        """
        self.latent_shape(*video.shape[1:4])
        latents, log_variance = self.moments(video)
        if noise is not None:
            latents = latents + jnp.exp(0.5 * log_variance) * noise
        return (latents - self.latent_mean[(None,) * 4]) / self.latent_std[(None,) * 4]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Normalised latents [B, T, h, w, c] -> video, float32 [B, T, H, W, 3], clipped to [-1, 1]."""
        latents = latents * self.latent_std[(None,) * 4] + self.latent_mean[(None,) * 4]
        frames = self._apply('decode', rearrange(latents, 'B T h w c -> (B T) h w c'))
        return rearrange(jnp.clip(frames, -1.0, 1.0), '(B T) H W d -> B T H W d', B=latents.shape[0])

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(T, h, w, c) of a clip.

        Raises:
          ConfigError: height or width is not a multiple of the downsample factor.
        """
        factor = self.config.downsample
        if height % factor or width % factor:
            raise ConfigError(f'frames of {height}x{width} must be multiples of tokenizer.downsample = {factor}')
        return frames, height // factor, width // factor, self.config.channels

    def _apply(self, method: str, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        return make_module(self.config).apply({'params': self.params}, x, method=method)


def make_module(config: TokenizerConfig, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """The linen module of `config.kind`, with methods encode(frames) and decode(latents); ConfigError if invalid."""
    return BUILDERS[config.kind](config, dtype)


def create_tokenizer(config: TokenizerConfig, key: jax.Array, height: int, width: int) -> Tokenizer:
    """A tokenizer with fresh parameters and statistics 0, 1; ConfigError if height x width does not fit `config`."""
    frames = jnp.zeros((1, height, width, 3), jnp.float32)
    config = dataclasses.replace(config, path='')
    blank = Tokenizer({}, jnp.zeros(config.channels), jnp.ones(config.channels), config)
    blank.latent_shape(1, height, width)
    return blank.replace(params=make_module(config).init(key, frames).get('params', {}))


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over config, latent statistics and parameters, as hex: tokenizers that share it compute the same."""
    config = dataclasses.asdict(dataclasses.replace(tokenizer.config, path=''))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    arrays = flatten_dict({'params': tokenizer.params}, sep='/')
    arrays |= {'latent_mean': tokenizer.latent_mean, 'latent_std': tokenizer.latent_std}
    for name, value in sorted(arrays.items()):
        value = np.ascontiguousarray(value)
        digest.update(f'{name} {value.dtype} {value.shape}'.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
