import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.diffusion.gaussian import training_target
from magi_jax.diffusion.schedule import full_process, respaced_process
from magi_jax.diffusion.solvers import SOLVERS, ancestral_sample

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
    process, (timestep, abar) = respaced_process(1000, steps, start), _respaced(steps, start)
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


def _respaced(steps, start):
    """Timesteps and abar of the respaced process, in float64."""
    timestep = np.rint(np.arange(steps) * start / (steps - 1)).astype(int)
    return timestep, np.cumprod(1 - np.minimum(1 - _abar(np.arange(1, 1001)) / _abar(np.arange(1000)), 0.999))[timestep]


@pytest.mark.parametrize('solver', ['ddim', 'dpm++'])
@pytest.mark.parametrize(('steps', 'clip'), [(7, np.inf), (6, 0.8), (2, 3.0)])
def test_ode_solvers_are_their_papers_formulas_written_out(solver, steps, clip):
    """In float64: DDIM with the noise that its clean token leaves, 2M with exponentials of log(signal / noise)."""
    start, temperature = 900, 0.7
    process, (timestep, abar) = respaced_process(1000, steps, start), _respaced(steps, start)
    signal, noise = np.sqrt(np.append(abar, 1.0)), np.sqrt(np.append(1 - abar, 0.0))  # [-1]: the end
    x, clean = temperature * np.float64(_noise(steps)), None
    for i in reversed(range(steps)):
        predicted = np.float64(_denoiser(jnp.float32(x), jnp.full(5, timestep[i])))[:, :3]
        before, clean = clean, np.clip((x - noise[i] * predicted) / signal[i], -clip, clip)
        if solver == 'ddim' or i in (0, 1, steps - 1):
            x = signal[i - 1] * clean + noise[i - 1] * (x - signal[i] * clean) / noise[i]
            continue
        position = np.log(signal[[i - 1, i, i + 1]] / noise[[i - 1, i, i + 1]])
        h, ratio = position[0] - position[1], (position[1] - position[2]) / (position[0] - position[1])
        middle = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * before
        x = noise[i - 1] / noise[i] * x - signal[i - 1] * np.expm1(-h) * middle
    got = jax.jit(lambda: SOLVERS[solver](_denoiser, _noise, process, 'noise', temperature, clip))()
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


MEAN, STD = 0.7, 1.2  # of tokens whose best denoiser and ODE are known


def _gaussian_denoiser(prediction):
    """E[clean | x_t] of clean ~ N(MEAN, STD^2), said as `prediction`."""

    def denoise(x, t):
        signal, noise = FULL.sqrt_abar[t][:, None], FULL.sqrt_one_minus_abar[t][:, None]
        clean = MEAN + STD**2 * signal / (signal**2 * STD**2 + noise**2) * (x - signal * MEAN)
        target = training_target(FULL, prediction, clean, (x - signal * clean) / noise, t)
        return jnp.concatenate([target, jnp.zeros_like(target)], axis=-1)

    return denoise


def _gaussian_error(solver, steps, prediction='clean', start=800):
    """Largest distance from the ODE's solution: x_t over its spread stays the same; the last step is E[clean | x_0]."""
    process = respaced_process(1000, steps, start)
    denoiser = _gaussian_denoiser(prediction)
    made = jax.jit(lambda: SOLVERS[solver](denoiser, lambda i: _noise(0), process, prediction))()
    signal, noise = _respaced(steps, start)[1] ** 0.5, (1 - _respaced(steps, start)[1]) ** 0.5
    spread = np.sqrt(signal**2 * STD**2 + noise**2)
    standard = (np.float64(_noise(0)) - signal[-1] * MEAN) / spread[-1]
    return np.abs(made - (MEAN + STD**2 * signal[0] / spread[0] * standard)).max()


@pytest.mark.parametrize(('solver', 'order', 'reached'), [('ddim', 1, 3e-2), ('dpm++', 2, 5e-4)])
def test_ode_solvers_converge_with_their_order(solver, order, reached):
    coarse, fine = (_gaussian_error(solver, steps) for steps in (81, 161))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25) and fine < reached


@pytest.mark.parametrize('prediction', ['noise', 'velocity'])
def test_ode_solvers_reach_a_gaussian_from_pure_noise(prediction):
    assert _gaussian_error('dpm++', 40, prediction, start=999) < 1e-2


def _mixture_error(solver, steps, spacing):
    """Mean distance between sorted samples of N(-1, 0.1^2) or N(1, 0.1^2), by their best denoiser, and exact ones."""
    process, count = respaced_process(1000, steps, 999, spacing), 4000
    modes, std = jnp.array([-1.0, 1.0]), 0.1

    def denoise(x, t):
        signal, noise = FULL.sqrt_abar[t][..., None], FULL.sqrt_one_minus_abar[t][..., None]
        spread = (signal * std) ** 2 + noise**2
        weights = jax.nn.softmax(-((x - signal * modes[None]) ** 2) / (2 * spread))
        means = modes[None] + std**2 * signal / spread * (x - signal * modes[None])
        clean = (weights * means).sum(-1, keepdims=True)
        return jnp.concatenate([clean, jnp.zeros_like(clean)], axis=-1)

    def noise(_):
        return jax.scipy.stats.norm.ppf((jnp.arange(count)[:, None] + 0.5) / count)

    made = jax.jit(lambda: SOLVERS[solver](denoise, noise, process, 'clean'))()
    exact = np.sort(np.concatenate([mode + std * noise(0)[::2, 0] for mode in np.asarray(modes)]))
    return np.abs(np.sort(made[:, 0]) - exact).mean()


@pytest.mark.parametrize('solver', ['ddim', 'dpm++'])
def test_trailing_timesteps_do_with_one_evaluation_less(solver):
    trailing = _mixture_error(solver, 4, 'trailing')
    assert trailing <= 1.05 * _mixture_error(solver, 5, 'even')
    assert trailing <= 0.55 * _mixture_error(solver, 4, 'even')


def test_temperature_of_ode_solvers_scales_what_is_drawn():
    """From pure noise, the deviation from the mean of a Gaussian target."""
    process = respaced_process(1000, 20, 999)
    cold, tepid, warm = (
        jax.jit(lambda t=t: SOLVERS['ddim'](_gaussian_denoiser('clean'), _noise, process, 'clean', t))()
        for t in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(cold, MEAN, atol=1e-4)
    np.testing.assert_allclose(tepid - MEAN, 0.5 * (warm - MEAN), atol=1e-4)


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
@pytest.mark.parametrize('clip', [3.0, np.inf])
def test_a_perfect_denoiser_arrives_at_the_clean_token(solver, prediction, clip):
    clean = jnp.linspace(-2.0, 2.0, 15).reshape(5, 3)

    def perfect(x, t):
        signal, noise = FULL.sqrt_abar[t][:, None], FULL.sqrt_one_minus_abar[t][:, None]
        target = training_target(FULL, prediction, clean, (x - signal * clean) / noise, t)
        return jnp.concatenate([target, jnp.zeros_like(target)], axis=-1)

    process = respaced_process(1000, 20, 999)
    sample = jax.jit(lambda: SOLVERS[solver](perfect, _noise, process, prediction, 1.0, clip))()
    np.testing.assert_allclose(sample, clean, atol=1e-4)


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
def test_extreme_outputs_cannot_leave_the_clipped_range(solver, prediction):
    """Logits of 86 at t = 10 are what the bound asks of a clean-token head whose squared error is 1. Unclipped, the
    variance of the respaced process would be e^114 there."""

    def extreme(x, t):
        assert x.dtype == jnp.float32
        return jnp.concatenate([1e4 * jnp.sign(x), jnp.full_like(x, 86.0)], axis=-1)

    process = respaced_process(1000, 100, 999)
    bounded = jax.jit(lambda: SOLVERS[solver](extreme, _noise, process, prediction, 1.0, 3.0))()
    assert (jnp.abs(bounded) <= 3.0).all()
