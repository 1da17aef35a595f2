"""The diffusion head as a denoiser: terms that do not depend on noisy tokens are computed before the first step.

Dimension key: B clips, R tokens revealed at once, C token width, D trunk width, S denoise steps, W head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from magi_jax.diffusion.schedule import Process
from magi_jax.diffusion.solvers import Denoiser
from magi_jax.models.diffusion_head import DiffusionHead

Array = jax.Array

# Largest number of rows B * R at which the time of a step is bound by reading weights. Up to it, all steps share one
# pass over two thirds of the weights, at 45 kB of results per row and step (W = 1024). More rows are compute-bound.
MAX_MEMORY_BOUND_ROWS = 128


def token_denoiser(head: DiffusionHead, params: Any, process: Process, z: Array) -> Denoiser:
    """Return the denoiser of the tokens with trunk output z [B, R, D], at the timesteps of `process`."""

    def call(method: Any, *inputs: Any) -> Any:
        return head.apply({'params': params}, *inputs, method=method)

    steps = jnp.zeros(head.config.timesteps, jnp.int32).at[process.timestep].set(jnp.arange(process.steps))
    times = call(DiffusionHead.embed_time, process.timestep)[:, None, None]
    condition, readout = call(DiffusionHead.condition, z)
    modulations = None
    if z.shape[0] * z.shape[1] <= MAX_MEMORY_BOUND_ROWS:
        modulations = call(DiffusionHead.modulate, times, condition[None])

    def denoise(x: Array, t: Array) -> Array:
        step = steps[t.reshape(-1)[0]]
        if modulations is None:
            modulation = call(DiffusionHead.modulate, times[step], condition)
        else:
            modulation = jax.tree.map(lambda table: table[step], modulations)
        return call(DiffusionHead.denoise, x, modulation, readout)

    return denoise
