"""The cosine diffusion process and its respaced form as tables (improved DDPM, as MAR uses it; MAGI §5.1).

Dimension key: S steps of the process.
"""

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import ConfigError

Spacing = Literal['even', 'trailing']


@flax.struct.dataclass
class Process:
    """Tables of a diffusion process, float32 [S] computed in float64, indexed by the step i.

    Attributes:
      timestep: timestep of the full process at step i, the input of the network, int32.
      sqrt_abar: weight of the clean token in x_i.
      sqrt_one_minus_abar: weight of the noise in x_i.
      log_beta: upper end of the learned log variance.
      posterior_log_variance: lower end; step 0 has the value of step 1, because its own is infinite.
      posterior_clean: weight of the clean token in the mean of q(x_{i-1} | x_i, x_0).
      posterior_noisy: weight of x_i in that mean.
    """

    timestep: jax.Array
    sqrt_abar: jax.Array
    sqrt_one_minus_abar: jax.Array
    log_beta: jax.Array
    posterior_log_variance: jax.Array
    posterior_clean: jax.Array
    posterior_noisy: jax.Array

    @property
    def steps(self) -> int:
        return self.timestep.shape[0]


def cosine_betas(steps: int) -> np.ndarray:
    """Return the betas of the cosine schedule, float64 [S].

    beta_i = min(1 - abar((i+1)/S) / abar(i/S), 0.999) with abar(u) = cos^2((u + 0.008)/1.008 * pi/2).
    """
    abar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def full_process(steps: int) -> Process:
    """Return the process of training, with all `steps` steps."""
    return _process(cosine_betas(steps), np.arange(steps))


def respaced_process(train_steps: int, steps: int, start: int, spacing: Spacing = 'even') -> Process:
    """Return the process of `steps` of the `train_steps` steps, for sampling.

    The betas are recomputed from abar of the chosen steps, so that x_i has the marginal of training at `timestep[i]`.

    Raises:
      ConfigError: `steps` is less than 2 or more than start + 1, or `start` is not a timestep after 0.
    """
    if not 1 <= start < train_steps:
        raise ConfigError(f'sampler.start = {start} is not a timestep after 0: choose 1 to {train_steps - 1}')
    if not 1 < steps <= start + 1:
        raise ConfigError(f'sampler.denoise_steps = {steps} is out of range: choose 2 to {start + 1}')
    timesteps = spaced_timesteps(steps, start, spacing)
    abar = np.cumprod(1 - cosine_betas(train_steps))[timesteps]
    return _process(1 - abar / np.append(1.0, abar[:-1]), timesteps)


def spaced_timesteps(steps: int, start: int, spacing: Spacing = 'even') -> np.ndarray:
    """Return `steps` ascending timesteps up to `start`, int64 [S].

    'even' goes from 0 to `start`. It sums float64 strides like `space_timesteps` in MAR, because the sum decides how
    halves are rounded. 'trailing' cuts 0..start into equal parts and takes the last timestep of each. It has no
    timestep near 0, where a step changes little.
    """
    if spacing == 'trailing':
        return np.rint((start + 1) * np.arange(1, steps + 1) / steps).astype(np.int64) - 1
    stride = start / (steps - 1) if steps > 1 else 1.0
    return np.rint(np.cumsum([0.0, *[stride] * (steps - 1)])).astype(np.int64)


def _process(betas: np.ndarray, timesteps: np.ndarray) -> Process:
    abar = np.cumprod(1 - betas)
    previous = np.append(1.0, abar[:-1])
    variance = betas * (1 - previous) / (1 - abar)
    tables = {
        'sqrt_abar': np.sqrt(abar),
        'sqrt_one_minus_abar': np.sqrt(1 - abar),
        'log_beta': np.log(betas),
        'posterior_log_variance': np.log(np.append(variance[1], variance[1:])),
        'posterior_clean': betas * np.sqrt(previous) / (1 - abar),
        'posterior_noisy': (1 - previous) * np.sqrt(1 - betas) / (1 - abar),
    }
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}
    return Process(timestep=jnp.asarray(timesteps, jnp.int32), **tables)
