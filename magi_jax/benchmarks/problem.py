"""The inputs of a benchmark: weights, and clips of latents in place of videos.

Dimension key: B clips, T frames, H W pixels, h w latents, c latent channels, N tokens of a frame, C token width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import Config, ConfigError, MagiConfig
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float

UNIFORM_STD = 3**-0.5  # standard deviation of uniform bytes, scaled to [-1, 1]


@flax.struct.dataclass
class LatentBytes(Tokenizer):
    """A stand-in tokenizer that reads the first h * w * c bytes of a frame as its latents.

    The train step is then the real one, from uint8 video on, and the frozen tokenizer costs nothing.
    """

    def encode(self, video: jax.Array, noise: jax.Array | None = None, context: int = 0) -> jax.Array:
        """Map video float32 [B, T, H, W, 3] in [-1, 1] to latents of standard deviation 1, float32 [B, t, h, w, c]."""
        shape = self.latent_shape(*video.shape[1:4])
        frames = video.reshape(*video.shape[:2], -1)[:, : shape[0], : int(np.prod(shape[1:]))]
        return frames.reshape(video.shape[0], *shape) / UNIFORM_STD


def latent_bytes(config: Config) -> LatentBytes:
    """Make the stand-in for `config.tokenizer`.

    Raises:
      ConfigError: the config trains a tokenizer, or its latents are larger than the frames.
    """
    if config.objective != 'masked_diffusion':
        raise ConfigError(f'the benchmark is of generators: objective = {config.objective!r} has no PyTorch reference')
    channels, cell = config.tokenizer.channels, 3 * config.tokenizer.downsample**2
    if channels > cell:
        raise ConfigError(f'tokenizer.channels = {channels} is more than the {cell} bytes behind one latent')
    return LatentBytes({}, jnp.zeros(channels), jnp.ones(channels), config.tokenizer)


def make_batch(config: Config) -> dict[str, np.ndarray]:
    """Make a batch like the data pipeline: video uint8 [B, T, H, W, 3], interval and example int32 [B]."""
    rng, data = np.random.default_rng(config.seed), config.data
    return {
        'video': rng.integers(0, 256, (data.batch_size, data.frames, data.height, data.width, 3), np.uint8),
        'interval': rng.integers(1, data.max_interval + 1, data.batch_size, np.int32),
        'example': np.arange(data.batch_size, dtype=np.int32),
    }


def clean_tokens(config: Config, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the tokens that the model sees of a batch, float32 [B, T, N, C]."""
    encode = jax.jit(lambda video: patchify(latent_bytes(config).encode(to_float(video)), config.model.patch))
    return np.asarray(encode(batch['video']))


def random_params(init: Callable[[jax.Array], Any], seed: int) -> dict[str, Any]:
    """Make arrays shaped as the parameters of `init(key)`: kernels of Xavier variance, the rest 0 or 1 +- 0.2.

    No parameter is zero. Heads with zero outputs, as after initialisation, would agree whatever their trunks compute.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == 'kernel':
            fans = (leaf.shape[-3], 3 * leaf.shape[-1]) if path[-2].key == 'qkv' else leaf.shape[-2:]
            return noise * np.float32((2 / sum(fans)) ** 0.5)
        return np.float32(path[-1].key == 'scale') + np.float32(0.2) * noise

    return jax.tree.map_with_path(draw, nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def without_dropout(config: MagiConfig) -> MagiConfig:
    """Return the config without dropout, which differs between frameworks and is off while outputs are compared."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
