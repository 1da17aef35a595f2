import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magi_jax.config import ConfigError, from_config_dict
from magi_jax.objectives.autoencoder import (
    LOG_VARIANCE_BOUND,
    bounded_exp,
    make_autoencoder_objective,
    psnr,
    random_crops,
)


def _objective(**loss):
    return make_autoencoder_objective(
        from_config_dict(
            {
                'objective': 'autoencoder',
                'data': {'height': 32, 'width': 48},
                'tokenizer': {'width': 16, 'channels': 3},
                'autoencoder_loss': {'crop': 16, **loss},
                'train': {'compute_dtype': 'float32'},
            }
        )
    )


def _batch(clips=5, frames=2):
    """Coloured rectangles on black."""
    rng = np.random.default_rng(0)
    video = np.zeros((clips, frames, 32, 48, 3), np.uint8)
    for clip in video.reshape(-1, 32, 48, 3):
        row, column = rng.integers(0, (18, 34))
        clip[row : row + 14, column : column + 14] = rng.integers(60, 256, 3)
    return {'video': video, 'interval': np.ones(clips, np.int32), 'example': np.arange(clips) + 11}


def test_a_tiny_set_is_learned_in_a_few_steps():
    objective, batch = _objective(crop=0), _batch()
    optimizer = optax.adam(5e-3)
    params = objective.init(jax.random.key(0))

    @jax.jit
    def step(params, state, key):
        gradient, metrics = jax.grad(objective.loss, has_aux=True)(params, None, batch, key, True)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    state, history = optimizer.init(params), []
    for i in range(60):
        params, state, metrics = step(params, state, jax.random.key(i))
        history.append(metrics)
    assert history[-1]['loss'] < 0.2 * history[0]['loss']
    assert objective.loss(params, None, batch, jax.random.key(0), False)[1]['psnr'] > history[0]['psnr'] + 6


def test_draws_belong_to_the_example_and_not_to_its_place_in_the_batch():
    objective, batch, order = _objective(), _batch(), np.array([3, 1, 4, 0, 2])
    loss = jax.jit(functools.partial(objective.loss, train=True))
    params = objective.init(jax.random.key(0))
    shuffled = {name: value[order] for name, value in batch.items()}
    relabelled = {**batch, 'example': batch['example'][order]}
    reference = loss(params, None, batch, jax.random.key(1))[0]
    np.testing.assert_allclose(loss(params, None, shuffled, jax.random.key(1))[0], reference, rtol=1e-5)
    assert abs(loss(params, None, relabelled, jax.random.key(1))[0] - reference) > 1e-4
    assert abs(loss(params, None, batch, jax.random.key(2))[0] - reference) > 1e-4


def test_evaluation_is_deterministic_and_sees_whole_frames():
    objective, batch = _objective(), _batch()
    params = objective.init(jax.random.key(0))
    first, second = (objective.loss(params, None, batch, jax.random.key(i), False)[1] for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    frames = batch['video'].reshape(-1, 32, 48, 3) / np.float32(127.5) - 1
    decoded = objective.module.apply({'params': params}, frames)
    np.testing.assert_allclose(first['l2'], np.mean((decoded - frames) ** 2), rtol=1e-5)
    np.testing.assert_allclose(first['l1'], np.mean(np.abs(decoded - frames)), rtol=1e-5)


def test_the_loss_is_the_weighted_sum_and_kl_is_per_latent_value():
    objective, batch = _objective(l1=0.3, l2=0.7, kl=0.01), _batch()
    params = objective.init(jax.random.key(0))
    loss, metrics = objective.loss(params, None, batch, jax.random.key(0), False)
    np.testing.assert_allclose(loss, 0.3 * metrics['l1'] + 0.7 * metrics['l2'] + 0.01 * metrics['kl'], rtol=1e-5)
    frames = batch['video'].reshape(-1, 32, 48, 3) / np.float32(127.5) - 1
    mean, log_variance = objective.module.apply({'params': params}, frames, method='encode')
    # KL(N(m, s) || N(0, 1)) = log(1 / s) + (s**2 + m**2) / 2 - 1 / 2
    expected = np.mean(-log_variance / 2 + (np.exp(log_variance) + mean**2) / 2 - 0.5)
    np.testing.assert_allclose(metrics['kl'], expected, rtol=1e-4)


def test_crops_are_windows_of_the_frame_that_reach_every_border():
    pixels = np.arange(7 * 11, dtype=np.float32).reshape(7, 11, 1)
    video = jnp.asarray(np.broadcast_to(pixels, (3, 200, 7, 11, 3)))
    crops = np.asarray(random_crops(video, jax.random.split(jax.random.key(0), 3), 5))
    assert crops.shape == (3, 200, 5, 5, 3)
    corners = crops[:, :, 0, 0, 0]
    np.testing.assert_array_equal(crops[..., 0], corners[..., None, None] + pixels[:5, :5, 0])
    assert set(corners.ravel()) == {11 * row + column for row in range(3) for column in range(7)}
    assert len({tuple(clip) for clip in corners}) == 3


def test_variance_is_the_exponential_up_to_the_bound_and_its_tangent_beyond():
    bound, step = LOG_VARIANCE_BOUND, 1e-2
    x = jnp.asarray([-20.0, -1.0, bound - 0.5, bound, bound + 0.5, bound + 10.0, 88.0])
    expected = np.where(x <= bound, np.exp(np.minimum(x, bound)), np.exp(bound) * (1 + x - bound))
    np.testing.assert_allclose(bounded_exp(x), expected, rtol=1e-5)
    gradient = jax.vmap(jax.grad(bounded_exp))(x)
    numeric = (bounded_exp(x + step) - bounded_exp(x - step)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(gradient, np.exp(np.minimum(x, bound)), rtol=1e-5)  # also at the bound itself


def test_an_absurd_log_variance_neither_dominates_the_loss_nor_breaks_its_gradient():
    objective, batch = _objective(kl=3e-4), _batch()
    params = objective.init(jax.random.key(0))
    bias = params['encoder']['Dense_0']['bias']
    params['encoder']['Dense_0']['bias'] = bias.at[bias.shape[0] // 2 :].set(20.0)

    def loss(params):
        return objective.loss(params, None, batch, jax.random.key(1), train=True)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert value < 10.0 and optax.global_norm(gradient) < 100.0


def test_psnr_of_a_known_error():
    frames = jnp.zeros((3, 8, 8, 3))
    np.testing.assert_allclose(psnr(frames + 0.02, frames), 40.0, rtol=1e-5)
    assert np.isfinite(psnr(frames, frames)).all()


@pytest.mark.parametrize(
    ('group', 'values', 'message'),
    [
        ('tokenizer', {'kind': 'identity', 'channels': 192}, 'no weights to train'),
        ('autoencoder_loss', {'crop': 20}, 'crop = 20'),
        ('autoencoder_loss', {'crop': 72}, 'crop = 72'),
        ('data', {'height': 60}, '60x64'),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(group, values, message):
    with pytest.raises(ConfigError, match=message):
        make_autoencoder_objective(from_config_dict({group: values}))
