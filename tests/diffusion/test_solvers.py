import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.diffusion.gaussian import training_target
from magi_jax.diffusion.schedule import full_process, respaced_process
from magi_jax.diffusion.solvers import ancestral_sample

FULL = full_process(1000)


def _noise(i):
    return jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (5, 3))


def _denoiser(x, t):
    """Any smooth network: it reads the token and the timestep, and answers all channels."""
    mixed = jnp.roll(x, 1, axis=-1) * 0.7 + jnp.sin(t / 300.0)[:, None]
    return jnp.concatenate([jnp.tanh(mixed), jnp.cos(2 * mixed)], axis=-1)


@pytest.mark.parametrize(('temperature', 'clip'), [(1.0, np.inf), (0.5, 0.8), (0.0, 3.0)])
def test_sampling_is_the_ancestral_loop_written_out(temperature, clip):
    """In float64, from abar alone: x_{i-1} = mean + [i > 0] temperature sigma noise."""
    steps, start = 7, 900
    process = respaced_process(1000, steps, start)
    timestep = np.rint(np.arange(steps) * start / (steps - 1)).astype(int)
    abar = np.cumprod(1 - np.minimum(1 - _abar(np.arange(1, 1001)) / _abar(np.arange(1000)), 0.999))[timestep]
    x = np.float64(_noise(steps))
    for i in reversed(range(steps)):
        before = abar[i - 1] if i else 1.0
        beta = 1 - abar[i] / before
        predicted, logits = np.split(np.float64(_denoiser(jnp.float32(x), jnp.full(5, timestep[i]))), 2, axis=-1)
        clean = np.clip((x - np.sqrt(1 - abar[i]) * predicted) / np.sqrt(abar[i]), -clip, clip)
        mean = (np.sqrt(before) * beta * clean + np.sqrt(1 - beta) * (1 - before) * x) / (1 - abar[i])
        low = np.log(beta * (1 - before) / (1 - abar[i])) if i else 0.0  # step 0 adds no noise
        sigma = np.exp(0.5 * ((logits + 1) / 2 * np.log(beta) + (1 - logits) / 2 * low))
        x = mean + (i > 0) * temperature * sigma * np.float64(_noise(i))
    got = jax.jit(lambda: ancestral_sample(_denoiser, _noise, process, 'noise', temperature, clip))()
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def _abar(step):
    return np.cos((step / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2


@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
@pytest.mark.parametrize('clip', [3.0, np.inf])
def test_a_perfect_denoiser_arrives_at_the_clean_token(prediction, clip):
    clean = jnp.linspace(-2.0, 2.0, 15).reshape(5, 3)

    def perfect(x, t):
        signal, noise = FULL.sqrt_abar[t][:, None], FULL.sqrt_one_minus_abar[t][:, None]
        target = training_target(FULL, prediction, clean, (x - signal * clean) / noise, t)
        return jnp.concatenate([target, jnp.zeros_like(target)], axis=-1)

    process = respaced_process(1000, 20, 999)
    sample = jax.jit(lambda: ancestral_sample(perfect, _noise, process, prediction, 1.0, clip))()
    np.testing.assert_allclose(sample, clean, atol=1e-4)


@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
def test_extreme_outputs_cannot_leave_the_clipped_range(prediction):
    """Logits of 86 at t = 10 are what the bound asks of a clean-token head whose squared error is 1. Unclipped, the
    variance of the respaced process would be e^114 there."""

    def extreme(x, t):
        assert x.dtype == jnp.float32
        return jnp.concatenate([1e4 * jnp.sign(x), jnp.full_like(x, 86.0)], axis=-1)

    process = respaced_process(1000, 100, 999)
    bounded = jax.jit(lambda: ancestral_sample(extreme, _noise, process, prediction, 1.0, 3.0))()
    assert (jnp.abs(bounded) <= 3.0).all()
