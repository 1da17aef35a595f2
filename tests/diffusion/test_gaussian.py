import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.diffusion import gaussian
from magi_jax.diffusion.gaussian import (
    add_noise,
    learned_log_variance,
    posterior_mean,
    predicted_clean,
    reverse_step,
    training_target,
)
from magi_jax.diffusion.schedule import full_process, respaced_process

FULL = full_process(1000)
RESPACED = respaced_process(1000, 100, 999)
diffusion_loss = jax.jit(gaussian.diffusion_loss, static_argnums=1)
PREDICTIONS = ['noise', 'clean', 'velocity']

# MAR's own loss on these vectors, C = 4, printed to six digits: 1e-5 relative or half a unit of the last digit.
INDEX = np.arange(4)
CLEAN, NOISE = np.float32(np.sin(INDEX + 1)), np.float32(np.cos(2 * INDEX + 1))
OUTPUT = np.float32(np.concatenate([0.5 * np.sin(3 * INDEX + 0.5), 0.25 * np.cos(INDEX)]))
LOSSES = [  # step, x_i[0], vb in bits, half a unit of vb's last digit
    (0, 0.844925, 1.227008, 5e-7),
    (1, 0.846486, 0.245456, 5e-7),
    (10, 0.855676, 0.035626, 5e-7),
    (500, 0.975389, 0.001590, 5e-7),
    (900, 0.663198, 0.005251, 5e-7),
    (999, 0.540344, 254.269, 5e-4),
]
REVERSE = [  # step, mean, log variance
    (0, [0.839948, 0.910443, 0.140432, -0.756577], [-10.11712, -10.12051, -10.12755, -10.13178]),
    (50, [0.844619, 0.933737, 0.138386, -0.768255], [-3.38904, -3.39098, -3.39503, -3.39745]),
    (99, [190.285767, 342.994476, 10.612523, -227.430542], None),
]


@pytest.mark.parametrize(('i', 'noisy', 'bits', 'half_digit'), LOSSES)
def test_loss_is_mars(i, noisy, bits, half_digit):
    i = jnp.asarray(i)
    assert add_noise(FULL, CLEAN, NOISE, i)[0] == pytest.approx(noisy, rel=1e-5)
    mse, vb = gaussian.diffusion_loss(FULL, 'noise', OUTPUT, CLEAN, NOISE, i)
    assert mse == pytest.approx(0.352844, rel=1e-5)
    assert vb == pytest.approx(bits, rel=1e-5, abs=half_digit)


@pytest.mark.parametrize(('i', 'mean', 'log_variance'), REVERSE)
def test_reverse_step_is_mars(i, mean, log_variance):
    got_mean, got_log_variance = reverse_step(RESPACED, 'noise', OUTPUT, CLEAN, jnp.asarray(i), jnp.inf)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-5, atol=5e-7)
    if log_variance is not None:
        np.testing.assert_allclose(got_log_variance, log_variance, rtol=1e-5, atol=5e-6)


def test_losses_are_batched_by_row():
    i = jnp.asarray([[10, 500, 999], [0, 1, 900]])
    rows = [jnp.broadcast_to(x, (2, 3, x.shape[-1])) for x in (OUTPUT, CLEAN, NOISE)]
    _, vb = diffusion_loss(FULL, 'noise', *rows, i)
    bits = {step: value for step, _, value, _ in LOSSES}
    # Compiled, the sums of the bound round differently where it is a small difference of large terms.
    np.testing.assert_allclose(vb, np.vectorize(bits.get)(i), rtol=5e-5, atol=5e-7)


def test_loss_at_initialisation_comes_from_the_last_step():
    """Zero output: the squared error is the noise's variance, 1; the bound is quadratic in the noise, so noise +-1
    gives its mean over N(0, 1): beta / (2 (1 - beta)) / ln 2 = 720.6 bits at t = 999, next to nothing else."""
    sign = jnp.asarray([1.0, -1.0, 1.0, -1.0])
    steps = jnp.arange(1000)
    noise, clean = jnp.broadcast_to(sign, (1000, 4)), jnp.broadcast_to(sign[::-1], (1000, 4))
    mse, vb = diffusion_loss(FULL, 'noise', jnp.zeros((1000, 8)), clean, noise, steps)
    np.testing.assert_array_equal(mse, 1.0)
    assert vb.mean() == pytest.approx(0.741, abs=1e-3)
    assert vb[-1] / 1000 == pytest.approx(0.7206, abs=1e-4)
    assert vb[:-1].mean() < 0.021


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_the_exact_target_recovers_the_clean_token(prediction):
    clean, noise = jax.random.normal(jax.random.key(0), (2, 1000, 3))
    i = jnp.arange(1000)
    x = add_noise(FULL, clean, noise, i)
    target = training_target(FULL, prediction, clean, noise, i)
    recovered = predicted_clean(FULL, prediction, x, target, i)
    amplified = 1 / FULL.sqrt_abar[:, None] if prediction == 'noise' else jnp.ones((1000, 1))
    assert (jnp.abs(recovered - clean) <= 2e-6 * amplified).all()
    output = jnp.concatenate([target, -jnp.ones_like(target)], axis=-1)
    mse, vb = diffusion_loss(FULL, prediction, output, clean, noise, i)
    assert (mse < 1e-12).all()
    assert (vb[1:-1] < 2e-3).all()  # the true mean under the true variance costs nothing; -1 is the posterior's


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_predictions_agree_on_the_reverse_step(prediction):
    clean, noise = jax.random.normal(jax.random.key(1), (2, 90, 3))
    i = jnp.arange(90)
    x = add_noise(RESPACED, clean, noise, i)
    target = training_target(RESPACED, prediction, clean, noise, i)
    mean, _ = reverse_step(RESPACED, prediction, jnp.concatenate([target, target], axis=-1), x, i, jnp.inf)
    np.testing.assert_allclose(mean, posterior_mean(RESPACED, clean, x, i), atol=2e-5)


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_bound_trains_the_variance_half_only(prediction):
    clean, noise, mean_half, logits = jax.random.normal(jax.random.key(2), (4, 6, 3))
    i = jnp.asarray([2, 1, 10, 500, 900, 999])
    output = jnp.concatenate([mean_half, logits], axis=-1)

    def total(output, which):
        return diffusion_loss(FULL, prediction, output, clean, noise, i)[which].sum()

    by_mse, by_vb = (np.asarray(jax.grad(total)(output, which)) for which in (0, 1))
    assert (by_mse[:, :3] != 0).all() and (by_mse[:, 3:] == 0).all()
    assert (by_vb[:, :3] == 0).all() and (by_vb[:, 3:] != 0).all() and np.isfinite(by_vb).all()


def test_log_variance_runs_from_the_posteriors_to_betas():
    i = jnp.asarray([1, 50])
    for logit, end in [(-1.0, RESPACED.posterior_log_variance), (1.0, RESPACED.log_beta)]:
        np.testing.assert_allclose(learned_log_variance(RESPACED, jnp.full((2, 3), logit), i)[:, 0], end[i], rtol=1e-6)


def test_clip_bounds_the_clean_token():
    x, i = jnp.asarray([0.3, -0.3]), jnp.asarray(99)
    output = jnp.asarray([-9.0, 9.0, 0.0, 0.0])  # far beyond any clean token at the first step
    mean, _ = reverse_step(RESPACED, 'noise', output, x, i, 3.0)
    np.testing.assert_allclose(mean, posterior_mean(RESPACED, jnp.asarray([3.0, -3.0]), x, i), rtol=1e-6)
    assert (jnp.abs(reverse_step(RESPACED, 'noise', output, x, i, jnp.inf)[0]) > 1000).all()


def test_clip_keeps_the_variance_in_its_range_and_infinity_is_mars():
    x, output, i = jnp.zeros((2, 1)), jnp.asarray([[0.0, 86.0], [0.0, -86.0]]), jnp.asarray([1, 1])
    ends = [RESPACED.log_beta[1], RESPACED.posterior_log_variance[1]]
    np.testing.assert_allclose(reverse_step(RESPACED, 'clean', output, x, i, 3.0)[1][:, 0], ends, rtol=1e-6)
    unbounded = reverse_step(RESPACED, 'clean', output, x, i, jnp.inf)[1][:, 0]
    np.testing.assert_allclose(unbounded, learned_log_variance(RESPACED, output[:, 1:], i)[:, 0])
    assert unbounded[0] > 100 and unbounded[1] < -100
