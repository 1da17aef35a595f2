"""One frame by masked modelling: K steps reveal its tokens in random order; the diffusion head samples them (MAR).

Dimension key: B clips, N tokens of a frame, C token width, D width, K mask steps, R largest number revealed in a step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.diffusion.gaussian import Prediction, guided_output
from magi_jax.diffusion.schedule import Process
from magi_jax.diffusion.solvers import SOLVERS, Denoiser
from magi_jax.masking.tokens import masked_counts, reveal_counts

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class FrameNetworks:
    """The two networks of a frame, with parameters and context bound.

    Attributes:
      condition: function (tokens [B, N, C], mask bool [B, N]) -> (z [B, N, D], the z that guidance moves away from;
        None for no guidance).
      denoiser: function z [B, R, D] -> denoiser of these tokens, called once for all their denoise steps.
    """

    condition: Callable[[Array, Array], tuple[Array, Array | None]]
    denoiser: Callable[[Array], Denoiser]


@dataclasses.dataclass(frozen=True)
class RevealRecipe:
    """Settings of token sampling: mask steps K, the denoising process and the sampler fields."""

    mask_steps: int
    process: Process
    prediction: Prediction
    temperature: float | Array
    x0_clip: float
    solver: str = 'ancestral'
    guidance: float = 1.0
    guidance_schedule: str = 'linear'


def sample_frame(networks: FrameNetworks, recipe: RevealRecipe, clip_keys: Array, shape: tuple[int, int]) -> Array:
    """Sample the N tokens of one frame for every clip.

    The host knows how many tokens each of the K steps reveals, so every step runs the head on one static bucket of R
    rows. Rows beyond the count of a step are computed and dropped, which is under 3 % of the work. Steps that reveal
    nothing (K > N) are skipped.

    Args:
      networks: trunk and head.
      recipe: sampler settings.
      clip_keys: keys [B] of this frame, one per clip.
      shape: (N, C).

    Returns:
      float32 [B, N, C].
    """
    tokens, width = shape
    counts, remaining = reveal_counts(tokens, recipe.mask_steps), masked_counts(tokens, recipe.mask_steps)
    steps = jnp.asarray(np.stack([remaining, counts], axis=1)[counts > 0])
    bucket = int(counts.max())
    order_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(clip_keys)
    order = jax.vmap(lambda key: jax.random.permutation(key, tokens))(order_keys)
    order = jnp.pad(order, ((0, 0), (0, bucket)))
    rows = jnp.arange(clip_keys.shape[0])[:, None]

    def reveal(carry: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        values, mask = carry
        index, (first, count) = step
        chosen = jax.lax.dynamic_slice_in_dim(order, first, bucket, axis=1)
        z, weak_z = networks.condition(values, mask)
        z = jnp.take_along_axis(z, chosen[..., None], axis=1)
        if weak_z is None:
            denoiser = networks.denoiser(z)
        else:
            weak_z = jnp.take_along_axis(weak_z, chosen[..., None], axis=1)
            revealed = 1.0 if recipe.guidance_schedule == 'constant' else revealed_fraction(first, tokens)
            both = networks.denoiser(jnp.concatenate([z, weak_z]))
            denoiser = _guided(both, 1 + (recipe.guidance - 1) * revealed)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(clip_keys)
        sampled = _sample_tokens(denoiser, recipe, step_keys, (bucket, width))
        target = jnp.where(jnp.arange(bucket)[None] < count, chosen, tokens)
        values = values.at[rows, target].set(sampled, mode='drop')
        return (values, mask.at[rows, target].set(False, mode='drop')), None

    start = jnp.zeros((clip_keys.shape[0], tokens, width)), jnp.ones((clip_keys.shape[0], tokens), bool)
    return jax.lax.scan(reveal, start, (jnp.arange(1, len(steps) + 1), steps))[0][0]


def revealed_fraction(hidden: Array | np.ndarray, tokens: int) -> Array | np.ndarray:
    """Return the fraction of revealed tokens that scales linear guidance in MAR: (N - m) / N.

    `hidden` is m, the number of tokens still hidden after a mask step. MAR counts at least one token, so the fraction
    in the last step is 1 - 1/N.
    """
    return (tokens - hidden.clip(1)) / tokens


def _sample_tokens(denoiser: Denoiser, recipe: RevealRecipe, keys: Array, shape: tuple[int, int]) -> Array:
    """Sample tokens [B, R, C] for keys [B] and shape (R, C)."""

    def noise(i: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    solve = SOLVERS[recipe.solver]
    return solve(denoiser, noise, recipe.process, recipe.prediction, recipe.temperature, recipe.x0_clip)


def _guided(denoiser: Denoiser, weight: Array) -> Denoiser:
    """Return a denoiser whose output is moved away from that of the weaker conditions.

    `denoiser` evaluates both halves of [strong, weak] clips in one pass, because a step is dominated by latency.
    """

    def guided(x: Array, t: Array) -> Array:
        output, weak = jnp.split(denoiser(jnp.concatenate([x, x]), t), 2)
        return guided_output(output, weak, weight)

    return guided
