"""The tokenizer interface: video to normalised latents and back, as a pytree that jit accepts as an argument.

A frame-wise tokenizer makes one latent frame of each frame. A temporal one makes t = 1 + (T - 1) / s latent frames of T
frames, and the first frame is encoded alone. Latents of Cosmos depend on earlier frames only; latents of OmniTokenizer
depend on all frames.

Dimension key: B clips, T frames, t latent frames, H W pixels, f downsample, h w = H/f W/f, c latent channels.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers import autoencoder_kl, cosmos, identity, omni, sd_vae


@dataclasses.dataclass(frozen=True)
class TokenizerKind:
    """Properties of one kind of tokenizer.

    Attributes:
      build: (config, dtype) -> linen module with encode and decode.
      stride: s, the number of frames of every latent frame but the first.
      square: frames must be square, with sides that are multiples of this number; None = any shape.
      pixels: most pixels (frames x area) that the module processes at once, but at least one row; None = no limit.
      variance: True if latents have a posterior variance.
    """

    build: Callable[[TokenizerConfig, jnp.dtype], nn.Module]
    stride: int = 1
    square: int | None = None
    pixels: int | None = None
    variance: bool = True


PIXELS = 2**20  # 16 frames of 256x256: half a GB in float32 for each of the widest activations of a VAE
KINDS = {
    'autoencoder_kl': TokenizerKind(autoencoder_kl.build),
    'identity': TokenizerKind(identity.build, variance=False),
    'sd_vae': TokenizerKind(sd_vae.build, pixels=PIXELS),
    'kl16': TokenizerKind(sd_vae.build, pixels=PIXELS),
    'cosmos_cv8x8x8': TokenizerKind(cosmos.build, stride=8, pixels=8 * PIXELS, variance=False),
    'cosmos_cv4x8x8': TokenizerKind(cosmos.build, stride=4, pixels=8 * PIXELS, variance=False),
    'cosmos_cv8x16x16': TokenizerKind(cosmos.build, stride=8, pixels=8 * PIXELS, variance=False),
    'omni': TokenizerKind(omni.build, stride=omni.STRIDE, square=omni.SQUARE, pixels=8 * PIXELS),
}


@flax.struct.dataclass
class Tokenizer:
    """A frozen tokenizer. Its latents are normalised per channel: (latent - latent_mean) / latent_std."""

    params: dict
    latent_mean: jax.Array  # float32 [c]
    latent_std: jax.Array  # float32 [c]
    config: TokenizerConfig = flax.struct.field(pytree_node=False)

    def __repr__(self) -> str:
        parameters = sum(getattr(leaf, 'size', 0) for leaf in jax.tree.leaves(self.params))
        grid = f'{self.config.channels} channels of {self.config.downsample}x{self.config.downsample} pixels'
        return f'Tokenizer({self.config.kind}, {grid}, {parameters:,} parameters)'

    @property
    def frame_wise(self) -> bool:
        """True if each latent frame depends on one frame only, so that devices can encode their own frames."""
        return KINDS[self.config.kind].stride == 1

    @property
    def has_variance(self) -> bool:
        """True if latents are drawn from a posterior with a variance above 0."""
        return KINDS[self.config.kind].variance

    def moments(self, video: jax.Array, context: int = 0) -> tuple[jax.Array, jax.Array]:
        """Encode video float32 [B, T, H, W, 3] in [-1, 1] to posterior mean and log variance [B, t, h, w, c].

        They are not normalised. The first `context` frames are encoded as if no other frames followed.
        """
        if not self.frame_wise:
            whole = self._apply('encode', video, math.prod(video.shape[1:4]))
            if not context:
                return whole
            alone = self._apply('encode', video[:, :context], math.prod(video[:, :context].shape[1:4]))
            return tuple(jnp.concatenate([a, w[:, a.shape[1] :]], axis=1) for a, w in zip(alone, whole))
        frames = rearrange(video, 'B T H W d -> (B T) H W d')
        moments = self._apply('encode', frames, math.prod(video.shape[2:4]))
        return tuple(rearrange(x, '(B T) h w c -> B T h w c', B=video.shape[0]) for x in moments)

    def encode(self, video: jax.Array, noise: jax.Array | None = None, context: int = 0) -> jax.Array:
        """Encode video float32 [B, T, H, W, 3] in [-1, 1] to normalised latents float32 [B, t, h, w, c].

        Args:
          video: the clips; T, H and W as `latent_shape` allows them (else ConfigError).
          noise: standard normal [B, t, h, w, c] to draw a posterior sample; None returns the posterior mean.
          context: number of first frames that are encoded as if no others followed; valid for `latent_shape`, or 0.
        """
        self.latent_shape(*video.shape[1:4])
        if context:
            self.latent_shape(context, *video.shape[2:4])
        return self.normalize(*self.moments(video, context), noise)

    def normalize(
        self, mean: jax.Array, log_variance: jax.Array | None = None, noise: jax.Array | None = None
    ) -> jax.Array:
        """Normalise moments [B, t, h, w, c]: a posterior sample, or the mean if variance or noise is None."""
        latents = jnp.asarray(mean, jnp.float32)
        if noise is not None and log_variance is not None:
            latents = latents + jnp.exp(0.5 * jnp.asarray(log_variance, jnp.float32)) * noise
        return (latents - self.latent_mean[(None,) * 4]) / self.latent_std[(None,) * 4]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode normalised latents [B, t, h, w, c] to video float32 [B, T, H, W, 3], clipped to [-1, 1]."""
        latents = latents * self.latent_std[(None,) * 4] + self.latent_mean[(None,) * 4]
        area = math.prod(latents.shape[2:4]) * self.config.downsample**2
        if not self.frame_wise:
            video = self._apply('decode', latents, area * self.video_frames(latents.shape[1]))
            return jnp.clip(video, -1.0, 1.0)
        frames = self._apply('decode', rearrange(latents, 'B T h w c -> (B T) h w c'), area)
        return rearrange(jnp.clip(frames, -1.0, 1.0), '(B T) H W d -> B T H W d', B=latents.shape[0])

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the latent shape (t, h, w, c) of a clip.

        Raises:
          ConfigError: height or width is not a multiple of the downsample factor, or a temporal tokenizer cannot take
            this many frames.
        """
        factor, kind = self.config.downsample, KINDS[self.config.kind]
        if height % factor or width % factor:
            raise ConfigError(f'frames of {height}x{width} must be multiples of tokenizer.downsample = {factor}')
        if kind.square and (height != width or height % kind.square):
            raise ConfigError(
                f'{self.config.kind} takes square frames with sides in multiples of {kind.square}, not {height}x{width}'
            )
        if (frames - 1) % kind.stride:
            fitting = 1 + max(frames - 1, 0) // kind.stride * kind.stride
            raise ConfigError(
                f'{self.config.kind} takes 1 + {kind.stride}k frames, not {frames}: use {fitting} or '
                f'{fitting + kind.stride}'
            )
        return 1 + (frames - 1) // kind.stride, height // factor, width // factor, self.config.channels

    def latent_frames(self, frames: int) -> int:
        """Return how many latent frames decode to at least `frames` frames."""
        return 1 - (1 - frames) // KINDS[self.config.kind].stride if frames else 0

    def video_frames(self, latent_frames: int) -> int:
        """Return how many frames T the given number of latent frames decodes to."""
        return 1 + (latent_frames - 1) * KINDS[self.config.kind].stride

    def _apply(self, method: str, x: jax.Array, pixels: int) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Apply the module to x [F, ...], rows of `pixels` pixels each.

        Many rows are processed in equal chunks, one by one.
        """

        def apply(part: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
            return make_module(self.config).apply({'params': self.params}, part, method=method)

        limit = KINDS[self.config.kind].pixels
        most = len(x) if limit is None else max(1, limit // pixels)
        if len(x) <= most:
            return apply(x)
        size = max(n for n in range(1, most + 1) if len(x) % n == 0)
        made = jax.lax.map(apply, rearrange(x, '(k n) ... -> k n ...', n=size))
        return jax.tree.map(lambda y: rearrange(y, 'k n ... -> (k n) ...'), made)


def make_module(config: TokenizerConfig, dtype: jnp.dtype | None = None) -> nn.Module:
    """Make the linen module of `config.kind`, with methods encode and decode. Raise ConfigError for invalid values.

    Frame-wise kinds map [F, ...] frames to latent frames; temporal kinds map [B, T, ...] clips. `dtype` is the compute
    dtype and replaces `config.dtype`, which applies to frozen tokenizers.
    """
    return KINDS[config.kind].build(config, jnp.dtype(dtype or config.dtype))


def create_tokenizer(config: TokenizerConfig, key: jax.Array, height: int, width: int) -> Tokenizer:
    """Create a tokenizer with fresh parameters and statistics 0, 1; raise ConfigError for a bad frame size."""
    config = dataclasses.replace(config, path='')
    blank = Tokenizer({}, jnp.zeros(config.channels), jnp.ones(config.channels), config)
    blank.latent_shape(1, height, width)
    shape = (1, height, width, 3) if blank.frame_wise else (1, 1, height, width, 3)
    return blank.replace(params=make_module(config).init(key, jnp.zeros(shape, jnp.float32)).get('params', {}))


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 over config, latent statistics and parameters, in hex.

    Equal fingerprints compute the same latents.
    """
    config = dataclasses.asdict(dataclasses.replace(tokenizer.config, path=''))
    if config['dtype'] == 'float32':  # keeps the fingerprints of folders that are older than the field
        del config['dtype']
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    arrays = flatten_dict({'params': tokenizer.params}, sep='/')
    arrays |= {'latent_mean': tokenizer.latent_mean, 'latent_std': tokenizer.latent_std}
    for name, value in sorted(arrays.items()):
        value = np.ascontiguousarray(value)
        digest.update(f'{name} {value.dtype} {value.shape}'.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
