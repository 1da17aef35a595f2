import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.diffusion.schedule import cosine_betas, full_process, respaced_process, spaced_timesteps


def test_cosine_betas():
    betas = cosine_betas(1000)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas[[0, 500, 998, 999]], [4.128422e-05, 3.155691e-03, 0.7499994, 0.999], rtol=1e-5)


def test_full_process():
    process = full_process(1000)
    assert process.steps == 1000 and {str(t.dtype) for t in vars(process).values()} == {'int32', 'float32'}
    steps = np.array([0, 10, 100, 500, 900, 999])
    abar = [0.9999587158, 0.9992789, 0.9715757, 0.4922852, 0.02361611, 2.428767e-09]
    np.testing.assert_allclose(np.float64(process.sqrt_abar)[steps] ** 2, abar, rtol=1e-5)
    np.testing.assert_allclose(np.float64(process.sqrt_one_minus_abar)[steps] ** 2, 1 - np.array(abar), rtol=1e-3)
    np.testing.assert_array_equal(process.timestep, np.arange(1000))


def test_respaced_process():
    process = respaced_process(1000, 100, 999)
    timestep = np.asarray(process.timestep)
    assert timestep[:7].tolist() == [0, 10, 20, 30, 40, 50, 61] and timestep[[50, 98, 99]].tolist() == [505, 989, 999]
    np.testing.assert_allclose(np.exp(process.log_beta)[[1, 99]], [6.798401e-04, 0.99999], rtol=1e-5)
    np.testing.assert_allclose(process.posterior_log_variance[:2], [-10.153945] * 2, rtol=1e-6)
    np.testing.assert_allclose(process.log_beta[0], -10.095030, rtol=1e-6)
    # The same marginals as training saw.
    np.testing.assert_allclose(process.sqrt_abar, full_process(1000).sqrt_abar[timestep], rtol=1e-6)


@pytest.mark.parametrize(('steps', 'start'), [(7, 900), (1000, 999), (2, 1), (25, 24)])
def test_respacing_reaches_from_zero_to_the_start(steps, start):
    timestep = np.asarray(respaced_process(1000, steps, start).timestep)
    assert len(timestep) == steps and timestep[0] == 0 and timestep[-1] == start and (np.diff(timestep) > 0).all()


def _mar_timesteps(count):
    """Improved DDPM's arithmetic in Python's floats: strides are summed, each sum is rounded, a tie to the even."""
    stride = 999 / (count - 1) if count > 1 else 1
    taken, position = [], 0.0
    for _ in range(count):
        taken.append(round(position))
        position += stride
    return taken


def test_even_timesteps_are_those_of_mar_for_every_count():
    for count in range(1, 1001):
        assert spaced_timesteps(count, 999).tolist() == _mar_timesteps(count), count


def test_trailing_timesteps_end_the_equal_parts_of_all():
    assert spaced_timesteps(4, 999, 'trailing').tolist() == [249, 499, 749, 999]
    for count in (1, 3, 7, 20, 901):
        timesteps = spaced_timesteps(count, 900, 'trailing')
        assert len(timesteps) == count and timesteps[-1] == 900 and (np.diff([-1, *timesteps]) > 0).all()
        assert np.ptp(np.diff([-1, *timesteps])) <= 1


@pytest.mark.parametrize(('steps', 'start'), [(1, 999), (100, 98), (10, 1000), (2, 0)])
def test_impossible_respacings_are_named(steps, start):
    field = 'denoise_steps' if 0 < start < 1000 else 'start'
    with pytest.raises(ConfigError, match=rf'sampler\.{field} = .*: choose'):
        respaced_process(1000, steps, start)


@pytest.mark.parametrize('process', [full_process(1000), respaced_process(1000, 13, 950)], ids=['full', 'respaced'])
def test_posterior_is_bayes_rule(process):
    """q(x_{i-1} | x_i, x_0) from the product of the two Gaussians q(x_i | x_{i-1}) q(x_{i-1} | x_0), in float64."""
    abar = np.float64(process.sqrt_abar) ** 2
    before, alpha = abar[:-1], abar[1:] / abar[:-1]
    precision = alpha / (1 - alpha) + 1 / (1 - before)
    inner = slice(2, -1)  # float32 tables cancel at the ends, where the golden values hold
    values = {
        'posterior_log_variance': -np.log(precision),
        'posterior_clean': np.sqrt(before) / (1 - before) / precision,
        'posterior_noisy': np.sqrt(alpha) / (1 - alpha) / precision,
    }
    for name, value in values.items():
        np.testing.assert_allclose(getattr(process, name)[1:][inner], value[inner], rtol=2e-2)
    np.testing.assert_allclose(process.log_beta[1:][inner], np.log(1 - alpha)[inner], rtol=2e-2)
