"""Training targets, the learned-range variance loss and the reverse step, for any process table (improved DDPM, MAR).

The network's output [..., 2C] has two halves: the prediction (noise, clean token or velocity) and the variance logits.

Dimension key: ... any leading axes (one diffusion step index i for each), C token width.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from magi_jax.diffusion.schedule import Process

Prediction = Literal['noise', 'clean', 'velocity']


def add_noise(process: Process, clean: jax.Array, noise: jax.Array, i: jax.Array) -> jax.Array:
    """Return x_i = sqrt(abar_i) clean + sqrt(1 - abar_i) noise; clean, noise [..., C], i int [...]."""
    return process.sqrt_abar[i][..., None] * clean + process.sqrt_one_minus_abar[i][..., None] * noise


def training_target(
    process: Process, prediction: Prediction, clean: jax.Array, noise: jax.Array, i: jax.Array
) -> jax.Array:
    """Return the target [..., C] of the prediction half.

    The velocity is sqrt(abar) noise - sqrt(1 - abar) clean.
    """
    if prediction == 'noise':
        return noise
    if prediction == 'clean':
        return clean
    return process.sqrt_abar[i][..., None] * noise - process.sqrt_one_minus_abar[i][..., None] * clean


def predicted_clean(
    process: Process, prediction: Prediction, x: jax.Array, predicted: jax.Array, i: jax.Array
) -> jax.Array:
    """Return the clean token [..., C] that the prediction half implies, unclipped."""
    if prediction == 'clean':
        return predicted
    signal, noise = process.sqrt_abar[i][..., None], process.sqrt_one_minus_abar[i][..., None]
    if prediction == 'noise':
        return x / signal - noise / signal * predicted
    return signal * x - noise * predicted


def posterior_mean(process: Process, clean: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Return the mean [..., C] of q(x_{i-1} | x_i = x, x_0 = clean)."""
    return process.posterior_clean[i][..., None] * clean + process.posterior_noisy[i][..., None] * x


def learned_log_variance(process: Process, logits: jax.Array, i: jax.Array) -> jax.Array:
    """Interpolate the log variance [..., C] between the posterior (logit -1) and beta (logit 1)."""
    fraction = (logits + 1) / 2
    low, high = process.posterior_log_variance[i][..., None], process.log_beta[i][..., None]
    return fraction * high + (1 - fraction) * low


def diffusion_loss(
    process: Process, prediction: Prediction, output: jax.Array, clean: jax.Array, noise: jax.Array, i: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the squared error of the prediction, and the variational bound in bits.

    The bound trains the variance half only: its gradient is stopped through the prediction (MAR).

    Args:
      process: the full process.
      prediction: quantity that the prediction half stands for.
      output: output [..., 2C] of the network at x_i = add_noise(clean, noise, i).
      clean: clean tokens [..., C].
      noise: noise [..., C].
      i: step index, int [...].

    Returns:
      (mse, vb), each float32 [...], averaged over C.
    """
    predicted, logits = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    target = training_target(process, prediction, clean, noise, i)
    mse = jnp.mean((predicted - target) ** 2, axis=-1)
    x = add_noise(process, clean, noise, i)
    frozen = predicted_clean(process, prediction, x, jax.lax.stop_gradient(predicted), i)
    mean, log_variance = posterior_mean(process, frozen, x, i), learned_log_variance(process, logits, i)
    true_mean, true_log_variance = posterior_mean(process, clean, x, i), process.posterior_log_variance[i][..., None]
    kl = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    nll = -_discretised_log_likelihood(clean, mean, 0.5 * log_variance)
    vb = jnp.mean(jnp.where((i == 0)[..., None], nll, kl), axis=-1) / jnp.log(2.0)
    return mse, vb


def reverse_step(
    process: Process,
    prediction: Prediction,
    output: jax.Array,
    x: jax.Array,
    i: jax.Array,
    x0_clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Return mean and log variance [..., C] of p(x_{i-1} | x_i = x).

    A finite `x0_clip` bounds the clean token, and the log variance to its learned range; inf bounds neither (MAR).
    Without the bound, logits outside [-1, 1] are harmless in training but overflow here. The learned range is narrow
    between neighbouring timesteps (0.13 at t = 10) but wide in a respaced process (2.9). The exponential then overflows
    and samples become NaN.
    """
    clean, logits = clipped_clean(process, prediction, output, x, i, x0_clip)
    if math.isfinite(x0_clip):
        logits = jnp.clip(logits, -1, 1)
    return posterior_mean(process, clean, x, i), learned_log_variance(process, logits, i)


def clipped_clean(
    process: Process,
    prediction: Prediction,
    output: jax.Array,
    x: jax.Array,
    i: jax.Array,
    x0_clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Return the clean token that an output [..., 2C] at x_i = x implies, and its variance logits.

    The clean token is clipped to +-`x0_clip`.
    """
    predicted, logits = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    return jnp.clip(predicted_clean(process, prediction, x, predicted, i), -x0_clip, x0_clip), logits


def guided_output(output: jax.Array, blind: jax.Array, weight: jax.Array | float) -> jax.Array:
    """Return [..., 2C] with the prediction `blind` + weight (`output` - `blind`) and the variance half of `output`."""
    (predicted, logits), (without, _) = (jnp.split(x, 2, axis=-1) for x in (output, blind))
    return jnp.concatenate([without + weight * (predicted - without), logits], axis=-1)


def _gaussian_kl(mean1: jax.Array, logvar1: jax.Array, mean2: jax.Array, logvar2: jax.Array) -> jax.Array:
    difference = (mean1 - mean2) ** 2 * jnp.exp(-logvar2)
    return 0.5 * (-1.0 + logvar2 - logvar1 + jnp.exp(logvar1 - logvar2) + difference)


def _discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Return the log probability of the bin of half-width 1/255 around x.

    The bins beyond +-0.999 include the tails (8-bit images).
    """
    inverse_std = jnp.exp(-log_std)
    upper = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    probability = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Compute the normal CDF by the tanh approximation of the losses in improved DDPM and MAR."""
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))
