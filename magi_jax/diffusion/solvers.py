"""Solvers: from noise to a clean token by a scan over an injected denoiser.

All take the same arguments, so that a sampler picks one of `SOLVERS` by name. Ancestral sampling draws noise at every
step; DDIM and DPM-Solver++(2M) follow the probability-flow ODE from one draw and leave the variance half unused.

Dimension key: ... any leading axes, C token width, S steps.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from magi_jax.diffusion.gaussian import Prediction, clipped_clean, reverse_step
from magi_jax.diffusion.schedule import Process

# (x [..., C], timestep int32, of as many axes as x but the last, each of size 1) -> output [..., 2C]
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
    """DDPM ancestral sampling: x_{i-1} = mean + [i > 0] temperature exp(logvar / 2) noise -> x_0 [..., C] float32."""
    noise = jax.vmap(noise_source)(jnp.arange(process.steps + 1))  # at once: in the loop it is many tiny operations

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
    """The probability-flow ODE by DPM-Solver++ in the clean token -> x_0 [..., C] float32; order 1 is DDIM with eta 0.

    x_{i-1} = (s'/s) x_i + (a' - a s'/s) d with signal a, noise s and d = clean_i + w (clean_i - clean_{i+1}), where
    w = h_i / (2 h_{i+1}) of order 2 extrapolates the clean token to the middle of the step h_i in log(a/s) (Lu et al.
    2022, 2M). The first step has nothing to extrapolate from. The last step, and the one that ends at timestep 0, are
    of order 1: there the noise vanishes and h grows without bound, while the clean token hardly changes.

    Args:
      denoiser: the network.
      noise_source: asked for the start only.
      process: a respaced one; S evaluations.
      prediction: what the network's prediction half is.
      temperature: scales the start, the only thing drawn: of a Gaussian target, the standard deviation around its mean.
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
        kept = noise / process.sqrt_one_minus_abar[i]
        return (kept * x + (signal - kept * process.sqrt_abar[i]) * target, clean), None

    start = temperature * noise_source(jnp.asarray(process.steps))
    steps = jnp.arange(process.steps)[::-1]
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), steps)[0][0]


def _extrapolation_weights(process: Process) -> jax.Array:
    """Return h_i / (2 h_{i+1}) [S], h_i the step from i to i-1 in log(signal / noise).

    It is 0 in the first step, in the last, and in the one that ends at timestep 0.
    """
    position = jnp.log(process.sqrt_abar) - jnp.log(process.sqrt_one_minus_abar)
    step = position[:-1] - position[1:]  # h_1 .. h_{S-1}
    weights = jnp.where(process.timestep[:-2] > 0, step[:-1] / (2 * step[1:]), 0.0)  # of i = 1 .. S-2
    return jnp.pad(weights, (1, process.steps - 1 - len(weights)))


SOLVERS = {
    'ancestral': ancestral_sample,
    'ddim': functools.partial(ode_sample, order=1),
    'dpm++': functools.partial(ode_sample, order=2),
}
