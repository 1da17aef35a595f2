"""Repeats the random numbers that the JAX model draws from its keys, to hand them to the PyTorch reference.

Dimension key: B clips, T latent frames, N tokens of a frame, C token width, M diffusion draws a token, K mask steps
that reveal something, S denoise steps, P largest number of tokens revealed in a step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import MagiConfig
from magi_jax.masking.tokens import draw_masks, reveal_counts
from magi_jax.models.clip_shape import ClipShape
from magi_jax.sampling.video import CONTEXT_NOISE
from magi_jax.training.step import TRAIN

Array = jax.Array


def step_key(config: MagiConfig, step: int) -> Array:
    """Return the key that the train step passes to the objective."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), TRAIN), step)


def training_draws(config: MagiConfig, shape: ClipShape, key: Array, example: Array) -> dict[str, Array]:
    """Draw the random numbers of `MaskedDiffusion.loss` without dropout, named as in `torch_training.TrainingDraws`.

    Args:
      config: of the run.
      shape: of its clips.
      key: of the step.
      example: int32 [B].
    """
    masking, head = config.masking, config.model.head
    key, example_key = jax.random.split(key)
    clip_keys = jax.vmap(jax.random.fold_in, (None, 0))(example_key, example)
    _, corruption, diffusion, _ = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(clip_keys)
    masks, levels, noises = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(corruption)
    frames, tokens, width = shape.frames, shape.tokens, shape.token_width
    rows = 1 if masking.noise_per == 'clip' else frames
    level = jax.vmap(lambda k: jax.random.randint(k, (rows,), 0, shape.noise_levels))(levels)

    def draw(clip_key: Array, number: Array) -> tuple[Array, Array]:
        i_key, noise_key = jax.random.split(jax.random.fold_in(clip_key, number))
        timestep = jax.random.randint(i_key, (frames, tokens), 0, head.timesteps)
        return timestep, jax.random.normal(noise_key, (frames, tokens, width))

    timestep, diffusion_noise = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(diffusion, jnp.arange(head.repeats))
    return {
        'mask': draw_masks(key, masks, frames, tokens, masking),
        'level': jnp.broadcast_to(level, (len(level), frames)),
        'noise': jax.vmap(lambda k: jax.random.normal(k, (frames, tokens, width)))(noises),
        'timestep': timestep,
        'diffusion_noise': diffusion_noise,
    }


@dataclasses.dataclass(frozen=True)
class VideoDraws:
    """The random numbers of the JAX sampler as arrays, named as in `torch_sampling.VideoDraws`.

    Attributes:
      config: of the run.
      shape: of its clips.
      clip_keys: [B] keys that the sampler was given.
    """

    config: MagiConfig
    shape: ClipShape
    clip_keys: Array

    def order(self, frame: int) -> np.ndarray:
        """Return the reveal order of a frame, int32 [B, N]."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(self._keys(frame))
        return np.asarray(jax.vmap(lambda key: jax.random.permutation(key, self.shape.tokens))(keys))

    def noise(self, frame: int) -> np.ndarray:
        """Return the noise of all denoise steps of a frame, float32 [K, S + 1, B, P, C]."""
        counts = reveal_counts(self.shape.tokens, self.config.sampler.mask_steps)
        steps, rows = int((counts > 0).sum()), (int(counts.max()), self.shape.token_width)

        def one(key: Array, step: Array, i: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, step), i), rows)

        over_clips = jax.vmap(one, (0, None, None))
        over_steps = jax.vmap(jax.vmap(over_clips, (None, None, 0)), (None, 0, None))
        denoise = jnp.arange(self.config.sampler.denoise_steps + 1)
        return np.asarray(over_steps(self._keys(frame), jnp.arange(1, steps + 1), denoise))

    def context_noise(self, frame: int) -> np.ndarray:
        """Return the noise that a finished frame gets as context, float32 [B, N, C]."""
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, CONTEXT_NOISE), frame))(self.clip_keys)
        shape = self.shape.tokens, self.shape.token_width
        return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))

    def _keys(self, frame: int) -> Array:
        return jax.vmap(jax.random.fold_in, (0, None))(self.clip_keys, frame)
