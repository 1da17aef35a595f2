import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiConfig, MagiHeadConfig, MagiMaskingConfig, MagiModelConfig, TokenizerConfig, TrainConfig
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.magi import Magi
from magi_jax.objectives import masked_diffusion
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.tokenizers.api import create_tokenizer
from tests.random_params import random_params

CLIPS, FRAMES = 3, 4
MODEL = MagiModelConfig(
    width=16, blocks=1, heads=2, mlp_width=24, patch=1, head=MagiHeadConfig(width=16, blocks=1, repeats=5)
)
TOKENIZER = TokenizerConfig(kind='identity', downsample=2, channels=12)
SHAPE = ClipShape(frames=FRAMES, rows=2, columns=3, token_width=12, intervals=7, noise_levels=6)


def _objective(model=None, masking=None, **train):
    config = MagiConfig(
        model=dataclasses.replace(MODEL, **(model or {})),
        masking=MagiMaskingConfig(**(masking or {})),
        tokenizer=TOKENIZER,
        train=TrainConfig(compute_dtype='float32', **train),
    )
    return MaskedDiffusion(config, SHAPE)


def _batch(order=range(CLIPS)):
    rng = np.random.default_rng(2)
    video = rng.integers(0, 256, (CLIPS, FRAMES, 4, 6, 3), np.uint8)
    batch = {'video': video, 'interval': np.asarray([1, 4, 7]), 'example': np.asarray([0, 1, 917])}
    return {name: value[list(order)] for name, value in batch.items()}


@pytest.fixture(scope='module')
def tokenizer():
    tokenizer = create_tokenizer(TOKENIZER, jax.random.key(0), 4, 6)
    return tokenizer.replace(latent_mean=tokenizer.latent_mean + 0.1, latent_std=tokenizer.latent_std * 0.6)


@pytest.fixture(scope='module')
def params():
    return random_params(_objective().init, scale=0.1)


@pytest.fixture(scope='module')
def metrics():
    run = jax.jit(lambda *args: _objective().loss(*args, train=False)[1])
    return lambda params, tokenizer, batch, seed: run(params, tokenizer, batch, jax.random.key(seed))


def test_draws_belong_to_the_example_and_not_to_its_place_in_the_batch(params, tokenizer, metrics):
    order = [2, 0, 1]
    reference = metrics(params, tokenizer, _batch(), 1)['loss']
    np.testing.assert_allclose(metrics(params, tokenizer, _batch(order), 1)['loss'], reference, rtol=1e-5)
    relabelled = _batch() | {'example': _batch(order)['example']}
    assert abs(metrics(params, tokenizer, relabelled, 1)['loss'] - reference) > 1e-4
    assert abs(metrics(params, tokenizer, _batch(), 2)['loss'] - reference) > 1e-4
    np.testing.assert_array_equal(metrics(params, tokenizer, _batch(), 1)['loss'], reference)


def test_loss_at_initialisation(params, tokenizer, metrics):
    """The head starts at zero: the squared error is the noise's variance."""
    fresh = params | {'head': jax.tree.map(jnp.zeros_like, params['head'])}
    mse = [metrics(fresh, tokenizer, _batch(), seed)['mse'] for seed in range(5)]
    assert np.mean(mse) == pytest.approx(1.0, abs=0.03)


@pytest.fixture
def seen(monkeypatch):
    """The objective with its networks replaced: what they are given, and a loss of 10 t + n for token n of frame t."""
    seen = {}

    def trunk(self, variables, observed, masked, mask, conditions, dropout_keys):
        seen.update(observed=observed, masked=masked, mask=mask, interval=conditions.interval, level=conditions.level)
        seen.update(dropout_keys=dropout_keys, history=conditions.history)
        return jnp.zeros((*mask.shape, self.config.width))

    def head(process, prediction, output, clean, noise, i):
        seen.update(prediction=prediction, clean=clean, noise=noise, i=i)
        tokens = 10.0 * jnp.arange(FRAMES)[:, None] + jnp.arange(SHAPE.tokens)[None]
        tokens = jnp.broadcast_to(tokens, i.shape)
        return tokens + jnp.arange(i.shape[1])[None, :, None, None], 1000 * tokens

    monkeypatch.setattr(Magi, 'apply', trunk)
    monkeypatch.setattr(masked_diffusion, 'diffusion_loss', head)
    return seen


def _run(objective, params, tokenizer, key=1, train=False):
    return objective.loss(params, tokenizer, _batch(), jax.random.key(key), train)[1]


def _clean(tokenizer):
    return np.asarray(tokenizer.encode(_batch()['video'] / 127.5 - 1)).reshape(CLIPS, FRAMES, 6, 12)


@pytest.mark.parametrize('first', [True, False])
def test_loss_is_the_mean_over_masked_tokens(params, tokenizer, seen, first):
    objective = _objective(masking={'first_frame_loss': first, 'ratio_min': 0.3, 'ratio_max': 0.6})
    metrics = _run(objective, params, tokenizer)
    mask = np.asarray(seen['mask']).copy()
    assert not mask.all() and mask[:, 0].any()
    mask[:, 0] &= first
    expected = np.broadcast_to(10.0 * np.arange(FRAMES)[:, None] + np.arange(6), mask.shape)[mask].mean()
    np.testing.assert_allclose(metrics['mse'], expected + 2, rtol=1e-6)  # + the mean over 5 copies of their number
    np.testing.assert_allclose(metrics['vb'], 1000 * expected, rtol=1e-6)
    assert metrics['loss'] == metrics['mse'] + metrics['vb']


def test_head_sees_every_token_in_independent_copies(params, tokenizer, seen):
    _run(_objective({'head': dataclasses.replace(MODEL.head, prediction='velocity')}), params, tokenizer)
    assert seen['prediction'] == 'velocity'
    assert seen['i'].shape == (CLIPS, 5, FRAMES, 6) and seen['noise'].shape == (CLIPS, 5, FRAMES, 6, 12)
    for copy in range(5):
        np.testing.assert_allclose(seen['clean'][:, copy], _clean(tokenizer), atol=1e-5)
    assert len(np.unique(seen['i'])) > 250 and seen['i'].min() >= 0 and seen['i'].max() < 1000
    assert len(np.unique(seen['noise'])) > 0.99 * seen['noise'].size


@pytest.mark.parametrize('noise_per', ['clip', 'frame'])
def test_observed_frames_are_noised_at_their_level(params, tokenizer, seen, noise_per):
    objective = _objective(masking={'noise_per': noise_per, 'noise_std': (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)})
    levels = []
    for key in range(4):
        _run(objective, params, tokenizer, key)
        noise = np.asarray(seen['observed']) - _clean(tokenizer)
        level = np.asarray(seen['level'])
        assert (np.abs(noise[level == 0]) < 1e-5).all()
        np.testing.assert_allclose(noise.std((2, 3)), level, rtol=0.3, atol=1e-5)
        np.testing.assert_allclose(seen['masked'], _clean(tokenizer), atol=1e-5)
        levels.append(level)
    varies = (np.concatenate(levels) != np.concatenate(levels)[:, :1]).any()
    assert varies == (noise_per == 'frame') and set(np.unique(levels)) == set(range(6))


@pytest.mark.parametrize(
    ('forcing', 'masking', 'noised', 'labelled'),
    [
        ('complete', {'noise_visible': True}, True, True),
        ('complete', {'noise_visible': False}, False, True),
        ('masked', {}, True, True),
        ('masked', {'noise_masked_teacher': False}, False, False),
    ],
)
def test_which_inputs_are_noised(params, tokenizer, seen, forcing, masking, noised, labelled):
    objective = _objective({'teacher_forcing': forcing}, {'noise_std': (0.5,) * 6, **masking})
    _run(objective, params, tokenizer)
    difference = np.abs(np.asarray(seen['masked']) - _clean(tokenizer))
    assert (difference.mean() > 0.2) if noised else (difference.max() < 1e-5)
    if forcing == 'masked':
        assert seen['observed'] is None
    else:
        np.testing.assert_allclose(seen['observed'] if noised else seen['masked'], seen['masked'])
    assert bool(seen['level'].any()) == labelled
    np.testing.assert_array_equal(seen['interval'], _batch()['interval'])


def test_dropout_only_in_training(params, tokenizer, seen):
    _run(_objective(), params, tokenizer)
    assert seen['dropout_keys'] is None
    _run(_objective(), params, tokenizer, train=True)
    assert len(set(map(tuple, np.asarray(jax.random.key_data(seen['dropout_keys']))))) == CLIPS


def test_history_is_dropped_as_often_as_asked_and_changes_no_other_draw(params, tokenizer, seen):
    _run(_objective(), params, tokenizer)
    assert seen.pop('history') is None
    others = {name: np.asarray(value) for name, value in seen.items() if name not in ('prediction', 'dropout_keys')}
    objective = _objective(masking={'history_dropout': 0.25})
    _run(objective, params, tokenizer)
    for name, value in others.items():
        np.testing.assert_array_equal(seen[name], value)
    kept = []
    for key in range(20):
        _run(objective, params, tokenizer, key)
        kept.append(seen['history'])
    kept = np.stack(kept)
    assert kept.mean() == pytest.approx(0.75, abs=0.15)
    assert (kept.any(axis=1) & ~kept.all(axis=1)).any()  # each clip for itself
