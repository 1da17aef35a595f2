"""The KL autoencoder's loss: pixel errors on random crops of single frames, and the KL of the posterior to N(0, 1).

Dimension key: B clips, T frames, F = B * T frames of a batch, H W pixels, S crop side, h w latents, c latent channels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from magi_jax.config import Config, ConfigError
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.tokenizers.api import make_module
from magi_jax.tokenizers.pixels import to_float

# The posterior needs no more variance than the prior. Without a bound, the linear output of the encoder can give an
# unusual frame a large log variance, and its exponential then dominates the loss.
LOG_VARIANCE_BOUND = 2.0


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """The objective of the autoencoder; `module` encodes and decodes frames."""

    config: Config
    module: nn.Module
    layout: Layout = SINGLE_DEVICE

    @property
    def trunk(self) -> None:
        """No video model is trained."""

    def init(self, key: jax.Array) -> dict:
        """Return fresh float32 parameters."""
        side = self.config.tokenizer.downsample
        return self.module.init(key, jnp.zeros((1, side, side, 3), jnp.float32))['params']

    def loss(
        self, params: dict, tokenizer: None, batch: dict, key: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss and the metrics of one batch.

        Args:
          params: parameters from `init`.
          tokenizer: unused; generators get their frozen tokenizer here.
          batch: 'video' uint8 [B, T, H, W, 3] and 'example' int [B], the index of each clip. The index seeds the random
            draws of a clip, so neither the order of clips nor their host changes a result.
          key: typed key of this step.
          train: True crops every frame at a random position and decodes posterior samples; False uses whole frames and
            posterior means.

        Returns:
          The loss l1 * mean |error| + l2 * mean error**2 + kl * KL. Pixels are in [-1, 1] and means run over all
          values. The variance of a sample is at most exp(LOG_VARIANCE_BOUND); beyond it KL grows linearly in the log
          variance. KL is in nats per latent value. The metrics are scalars: loss, l1, l2, kl (unweighted), and psnr in
          dB of the clipped reconstruction (peak range 2, mean over frames).
        """
        params, weights = self.layout.gather(params), self.config.autoencoder_loss
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['example'])
        frames = to_float(batch['video'])
        if train and weights.crop:
            frames = random_crops(frames, jax.vmap(jax.random.fold_in, (0, None))(keys, 0), weights.crop)
        frames = rearrange(frames, 'B T S R d -> (B T) S R d')
        mean, log_variance = self.module.apply({'params': params}, frames, method='encode')
        latents = mean
        if train:
            latents = mean + jnp.exp(0.5 * jnp.minimum(log_variance, LOG_VARIANCE_BOUND)) * _noise(keys, mean)
        reconstruction = self.module.apply({'params': params}, latents, method='decode')
        error = reconstruction - frames
        metrics = {
            'l1': jnp.mean(jnp.abs(error)),
            'l2': jnp.mean(jnp.square(error)),
            'kl': jnp.mean(0.5 * (jnp.square(mean) + bounded_exp(log_variance) - 1.0 - log_variance)),
            'psnr': jnp.mean(psnr(jnp.clip(reconstruction, -1.0, 1.0), frames)),
        }
        metrics = {name: self.layout.mean(value, jnp.ones(())) for name, value in metrics.items()}
        loss = weights.l1 * metrics['l1'] + weights.l2 * metrics['l2'] + weights.kl * metrics['kl']
        return loss, {'loss': loss, **metrics}


def make_autoencoder_objective(config: Config) -> AutoencoderObjective:
    """Make the objective of `config`.

    Raises:
      ConfigError: the tokenizer has nothing to train, or frames or crops do not fit its downsample factor.
    """
    if config.tokenizer.kind == 'identity':
        raise ConfigError('tokenizer.kind = identity has no weights to train: choose autoencoder_kl')
    factor, crop, data = config.tokenizer.downsample, config.autoencoder_loss.crop, config.data
    if crop % factor or crop > min(data.height, data.width):
        raise ConfigError(
            f'autoencoder_loss.crop = {crop} must be 0 or a multiple of tokenizer.downsample = {factor}'
            f' within the frames of {data.height}x{data.width}'
        )
    if data.height % factor or data.width % factor:
        raise ConfigError(f'frames of {data.height}x{data.width} must be multiples of tokenizer.downsample = {factor}')
    return AutoencoderObjective(config, make_module(config.tokenizer, jnp.dtype(config.train.compute_dtype)))


def bounded_exp(x: jax.Array) -> jax.Array:
    """Return exp(x) up to LOG_VARIANCE_BOUND, and its tangent from there on: the gradient stays bounded."""
    return jnp.exp(jnp.minimum(x, LOG_VARIANCE_BOUND)) * (1.0 + jnp.maximum(x - LOG_VARIANCE_BOUND, 0.0))


def random_crops(video: jax.Array, keys: jax.Array, side: int) -> jax.Array:
    """Crop video [B, T, H, W, 3] to [B, T, side, side, 3], each frame at a random position; one key per clip [B]."""
    height, width = video.shape[2:4]
    limits = jnp.array([height - side + 1, width - side + 1])

    def crop_frame(frame: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(frame, (corner[0], corner[1], 0), (side, side, 3))

    def crop_clip(clip: jax.Array, key: jax.Array) -> jax.Array:
        return jax.vmap(crop_frame)(clip, jax.random.randint(key, (clip.shape[0], 2), 0, limits[None]))

    return jax.vmap(crop_clip)(video, keys)


def psnr(reconstruction: jax.Array, frames: jax.Array) -> jax.Array:
    """Return the PSNR of frames [F, H, W, 3] in [-1, 1], in dB [F], at most 106 dB (squared error 1e-10)."""
    error = jnp.mean(jnp.square(reconstruction - frames), axis=(1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))


def _noise(keys: jax.Array, latents: jax.Array) -> jax.Array:
    """Draw normal noise shaped like latents [F, h, w, c] from one key per clip [B], independent of the crops."""
    shape = (latents.shape[0] // keys.shape[0], *latents.shape[1:])
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), shape, jnp.float32))(keys)
    return rearrange(noise, 'B T h w c -> (B T) h w c')
