"""The diffusion head as a solver sees it: what does not depend on the noisy tokens is computed before the first step.

Dimension key: B clips, R tokens revealed at once, C token width, D trunk width, S denoise steps, W head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from magi_jax.diffusion.schedule import Process
from magi_jax.diffusion.solvers import Denoiser
from magi_jax.models.diffusion_head import DiffusionHead

Array = jax.Array

# Up to so many rows B * R a step's matrix products cost what reading their weights costs: two thirds of these are then
# read once for all steps, at 45 kB a row and step (W = 1024). More rows keep the matrix units busy as it is.
FEW_ROWS = 128


def token_denoiser(head: DiffusionHead, params: Any, process: Process, z: Array) -> Denoiser:
    """What denoises the tokens whose trunk output is z [B, R, D], at the timesteps of `process`."""

    def call(method: Any, *inputs: Any) -> Any:
        return head.apply({'params': params}, *inputs, method=method)

    steps = jnp.zeros(head.config.timesteps, jnp.int32).at[process.timestep].set(jnp.arange(process.steps))
    times = call(DiffusionHead.embed_time, process.timestep)[:, None, None]
    condition, readout = call(DiffusionHead.condition, z)
    modulations = None
    if z.shape[0] * z.shape[1] <= FEW_ROWS:
        modulations = call(DiffusionHead.modulate, times, condition[None])

    def denoise(x: Array, t: Array) -> Array:
        step = steps[t.reshape(-1)[0]]
        if modulations is None:
            own = call(DiffusionHead.modulate, times[step], condition)
        else:
            own = jax.tree.map(lambda table: table[step], modulations)
        return call(DiffusionHead.denoise, x, own, readout)

    return denoise
