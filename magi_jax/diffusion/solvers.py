"""Solvers: from noise to a clean token by a scan over an injected denoiser.

Dimension key: ... any leading axes, C token width, S steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from magi_jax.diffusion.gaussian import Prediction, reverse_step
from magi_jax.diffusion.schedule import Process

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x [..., C], timestep int32 [...]) -> output [..., 2C]
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

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        index = jnp.full(x.shape[:-1], i)
        output = denoiser(x, process.timestep[index])
        mean, log_variance = reverse_step(process, prediction, output, x, index, x0_clip)
        return mean + (i > 0) * temperature * jnp.exp(0.5 * log_variance) * noise_source(i), None

    start = noise_source(jnp.asarray(process.steps))
    return jax.lax.scan(step, start, jnp.arange(process.steps)[::-1])[0]
