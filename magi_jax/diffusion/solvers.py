"""Solvers: a scan over a denoiser that turns noise into a clean token.

All solvers take the same arguments, so that a sampler selects one of `SOLVERS` by name. Ancestral sampling adds noise
at every step. DDIM and DPM-Solver++(2M) follow the probability-flow ODE from one noise sample and ignore the variance
half.

Dimension key: ... any leading axes, C token width, S steps.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from magi_jax.diffusion.gaussian import Prediction, clipped_clean, reverse_step
from magi_jax.diffusion.schedule import Process

# (x [..., C], timestep int32 [1, ..., 1] with one axis less than x) -> output [..., 2C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
NoiseSource = Callable[[jax.Array], jax.Array]  # step index i int32 scalar (S for the start) -> N(0, 1) [..., C]


def ancestral_sample(
    denoiser: Denoiser,
    noise_source: NoiseSource,
    process: Process,
    prediction: Prediction,
    temperature: float | jax.Array = 1.0,
    x0_clip: float = jnp.inf,
) -> jax.Array:
    """Sample x_0 [..., C] float32 by DDPM ancestral sampling.

    x_{i-1} = mean + [i > 0] temperature exp(logvar / 2) noise.
    """
    # All at once, because the loop would run many tiny operations.
    noise = jax.vmap(noise_source)(jnp.arange(process.steps + 1))

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        index = jnp.full((1,) * (x.ndim - 1), i)
        output = denoiser(x, process.timestep[index])
        mean, log_variance = reverse_step(process, prediction, output, x, index, x0_clip)
        return mean + (i > 0) * temperature * jnp.exp(0.5 * log_variance) * noise[i], None

    return jax.lax.scan(step, noise[-1], jnp.arange(process.steps)[::-1])[0]


def ode_sample(
    denoiser: Denoiser,
    noise_source: NoiseSource,
    process: Process,
    prediction: Prediction,
    temperature: float | jax.Array = 1.0,
    x0_clip: float = jnp.inf,
    *,
    order: Literal[1, 2],
) -> jax.Array:
    """Compute x_0 [..., C] float32 by the probability-flow ODE, with DPM-Solver++ in the clean token.

    Order 1 is DDIM with eta 0. A step is x_{i-1} = (s'/s) x_i + (a' - a s'/s) d with signal a and noise s. Here d =
    clean_i + w (clean_i - clean_{i+1}). Order 2 (Lu et al. 2022, 2M) has w = h_i / (2 h_{i+1}), where h_i is the step
    in log(a/s). It extrapolates the clean token to the middle of the step.

    The first step has no earlier one and is of order 1. So are the last step and the step that ends at timestep 0.
    There the noise vanishes and h grows without bound, while the clean token hardly changes.

    Args:
      denoiser: the network.
      noise_source: source of the initial noise.
      process: respaced process; the network is evaluated S times.
      prediction: quantity that the prediction half stands for.
      temperature: scale of the initial noise. For a Gaussian target it scales the standard deviation of samples.
      x0_clip: bound on predicted clean tokens.
      order: 1 or 2.
    """
    weights = _extrapolation_weights(process) if order == 2 else jnp.zeros(process.steps)

    def step(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, before = carry
        index = jnp.full((1,) * (x.ndim - 1), i)
        clean = clipped_clean(process, prediction, denoiser(x, process.timestep[index]), x, index, x0_clip)[0]
        target = clean + weights[i] * (clean - before)
        signal = jnp.where(i > 0, process.sqrt_abar[i - 1], 1.0)
        noise = jnp.where(i > 0, process.sqrt_one_minus_abar[i - 1], 0.0)
        ratio = noise / process.sqrt_one_minus_abar[i]
        return (ratio * x + (signal - ratio * process.sqrt_abar[i]) * target, clean), None

    start = temperature * noise_source(jnp.asarray(process.steps))
    steps = jnp.arange(process.steps)[::-1]
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), steps)[0][0]


def _extrapolation_weights(process: Process) -> jax.Array:
    """Return h_i / (2 h_{i+1}) [S], where h_i is the step from i to i-1 in log(signal / noise).

    The weight is 0 in the first step, in the last, and in the step that ends at timestep 0.
    """
    position = jnp.log(process.sqrt_abar) - jnp.log(process.sqrt_one_minus_abar)
    step = position[:-1] - position[1:]  # h_1 .. h_{S-1}
    weights = jnp.where(process.timestep[:-2] > 0, step[:-1] / (2 * step[1:]), 0.0)  # for i = 1 .. S-2
    return jnp.pad(weights, (1, process.steps - 1 - len(weights)))


SOLVERS = {
    'ancestral': ancestral_sample,
    'ddim': functools.partial(ode_sample, order=1),
    'dpm++': functools.partial(ode_sample, order=2),
}
