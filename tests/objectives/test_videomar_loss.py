"""The next-frame diffusion loss: its target, its draws, and what it equals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import (
    HeadConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiMaskingConfig,
    MagiModelConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VideomarConfig,
    VideomarMaskingConfig,
    VideomarModelConfig,
)
from magi_jax.masking.frames import draw_target
from magi_jax.masking.tokens import draw_masks
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.models.magi import Magi
from magi_jax.models.videomar import Videomar
from magi_jax.objectives import masked_diffusion
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.tokenizers.api import create_tokenizer
from tests.random_params import random_params

FRAMES, TOKENS = 4, 6
TOKENIZER = TokenizerConfig(kind='identity', downsample=2, channels=12)
SHAPE = ClipShape(frames=FRAMES, rows=2, columns=3, token_width=12, intervals=1, noise_levels=1)
HEAD = HeadConfig(width=16, blocks=1, repeats=3)
MODEL = VideomarModelConfig(width=16, blocks=2, heads=2, mlp_width=24, rope_split=(4, 2, 2), head=HEAD)
TEXT = TextConfig(encoder='words', length=4, width=5, dropout=0.4)


def _objective(forcing='single', frames=FRAMES, **masking):
    config = VideomarConfig(
        model=dataclasses.replace(MODEL, teacher_forcing=forcing),
        masking=VideomarMaskingConfig(**masking),
        tokenizer=TOKENIZER,
        text=TEXT,
        train=TrainConfig(compute_dtype='float32'),
    )
    return MaskedDiffusion(config, dataclasses.replace(SHAPE, frames=frames))


def _magi(**masking):
    model = MagiModelConfig(
        width=16, blocks=1, heads=2, mlp_width=24, patch=1, head=MagiHeadConfig(width=16, blocks=1, repeats=3)
    )
    config = MagiConfig(model=model, masking=MagiMaskingConfig(**masking), tokenizer=TOKENIZER)
    return MaskedDiffusion(config, dataclasses.replace(SHAPE, noise_levels=6))


def _batch(clips=4, frames=FRAMES):
    rng = np.random.default_rng(2)
    return {
        'video': rng.integers(0, 256, (clips, frames, 4, 6, 3), np.uint8),
        'interval': np.ones((clips,), np.int32),
        'example': np.arange(clips) + 7,
        'text': np.float32(rng.normal(size=(clips, TEXT.length, TEXT.width))),
        'text_mask': rng.random((clips, TEXT.length)) < 0.8,
    }


def _mask_keys(key, examples):
    """Return the keys of the masks: one of the step, and one of each clip, from which its target is drawn too."""
    step, example = jax.random.split(key)
    clips = jax.vmap(jax.random.fold_in, (None, 0))(example, examples)
    return step, jax.vmap(lambda k: jax.random.split(k, 4)[1])(clips)


def _targets(key, examples, first=1, frames=FRAMES):
    return np.asarray(jax.vmap(lambda k: draw_target(k, first, frames))(_mask_keys(key, examples)[1]))


@pytest.fixture(scope='module')
def tokenizer():
    return create_tokenizer(TOKENIZER, jax.random.key(0), 4, 6)


@pytest.fixture(scope='module')
def params():
    return random_params(_objective().init, scale=0.1)


FORCINGS = ('single', 'complete')


@jax.jit
def _losses(*arguments):
    """Return the metrics of both layouts. One program compiles faster than two."""
    return {forcing: _objective(forcing).loss(*arguments, train=True)[1] for forcing in FORCINGS}


def _assert_near(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), a, b)


def test_single_loss_is_complete_forcing_with_one_target_frame(params, tokenizer):
    """Text and its dropout included; no draw depends on the layout."""
    single, complete = _losses(params, tokenizer, _batch(), jax.random.key(3)).values()
    _assert_near(single, complete)
    assert single['loss'] > 0.5 and single['vb'] != 0


@pytest.mark.slow
def test_single_gradient_is_complete_forcing_with_one_target_frame(params, tokenizer):
    def gradient(forcing):
        def loss(*arguments):
            return _objective(forcing).loss(*arguments, train=True)[0]

        return jax.jit(jax.grad(loss))(params, tokenizer, _batch(), jax.random.key(3))

    single, complete = map(gradient, FORCINGS)
    _assert_near(single, complete)
    assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(single))


def test_frames_after_the_target_change_no_bit_of_the_loss(params, tokenizer):
    """Every clip has a target of its own, and frames before it matter."""
    key, batch = jax.random.key(3), _batch()
    targets, number = _targets(key, batch['example'])[:, None], np.arange(FRAMES)[None]
    assert 1 <= targets.min() < targets.max()

    def losses_with_other(frames):
        video = np.where(frames[..., None, None, None], 255 - batch['video'], batch['video'])
        losses = _losses(params, tokenizer, batch | {'video': video}, key)
        return np.asarray([losses[forcing]['loss'] for forcing in FORCINGS])

    before = losses_with_other(number < 0)
    assert (losses_with_other(number > targets) == before).all()
    for clip in range(len(targets)):
        assert (losses_with_other((number < targets) & (np.arange(len(targets)) == clip)[:, None]) != before).all()


@pytest.fixture
def run(monkeypatch, tokenizer):
    """Run an objective without networks; return its metrics and what the networks would read.

    The loss of token n is 10 t + n if the pixels of its frame are t, and the bound is a thousand times that.
    """
    seen = {}

    def trunk(self, variables, observed, masked, mask, conditions, dropout_keys):
        seen.update(observed=observed, masked=masked, mask=mask, conditions=conditions)
        return jnp.zeros((*mask.shape, self.config.width))

    def loss(process, prediction, output, clean, noise, i):
        frames = jnp.rint((clean[..., 0] + 1) * 127.5)
        seen.update(frames=frames[:, 0, :, 0], noise=noise, i=i)
        values = 10 * frames + jnp.arange(TOKENS)[None, None, None]
        return values, 1000 * values

    monkeypatch.setattr(Magi, 'apply', trunk)
    monkeypatch.setattr(Videomar, 'apply', trunk)
    monkeypatch.setattr(DiffusionHead, 'apply', lambda *arguments: None)
    monkeypatch.setattr(masked_diffusion, 'diffusion_loss', loss)
    params = {'trunk': {}, 'head': {}}

    def run(objective, batch, train=False):
        traced = jax.jit(lambda batch: (objective.loss(params, tokenizer, batch, jax.random.key(1), train)[1], seen))
        return jax.tree.map(np.asarray, traced(batch))

    return run


def _numbered(clips, frames=FRAMES):
    """Return a batch in which every pixel holds the number of its frame."""
    batch = _batch(clips, frames)
    number = np.arange(frames, dtype=np.uint8)[None, :, None, None, None]
    return batch | {'video': np.broadcast_to(number, batch['video'].shape)}


def _is_uniform(targets, expected):
    values, counts = np.unique(targets, return_counts=True)
    share = len(targets) / len(expected)
    return tuple(values) == expected and (np.abs(counts - share) < 4.5 * share**0.5).all()


@pytest.mark.parametrize(('frames', 'expected'), [(4, (1, 2, 3)), pytest.param(1, (0,), marks=pytest.mark.slow)])
def test_target_is_uniform_and_text_is_dropped(run, frames, expected):
    clips = 400 * len(expected)
    batch = _numbered(clips, frames)
    metrics, seen = run(_objective(frames=frames), batch, train=frames > 1)
    targets = seen['frames'][:, 0].astype(int)
    assert _is_uniform(targets, expected)
    text = seen['conditions'].text
    for target in expected:  # independent of the target; never in evaluation
        rate = TEXT.dropout if frames > 1 else 0
        assert 1 - text.keep[targets == target].mean() == pytest.approx(rate, abs=0.1)
    np.testing.assert_array_equal(text.states, batch['text'])
    np.testing.assert_array_equal(text.mask, batch['text_mask'])
    np.testing.assert_array_equal(targets, _targets(jax.random.key(1), np.arange(clips) + 7, expected[0], frames))
    number, mask = np.arange(frames)[None], seen['mask']
    assert not mask[number < targets[:, None]].any() and mask[number > targets[:, None]].all()
    hidden = mask[number == targets[:, None]]
    assert set(hidden.sum(1)) == {5, 6} and (hidden.mean(0) > 0.8).all() and (hidden.mean(0) < 1).all()
    np.testing.assert_allclose(metrics['mse'], (10 * targets[:, None] + np.arange(TOKENS))[hidden].mean(), rtol=1e-5)


@pytest.mark.slow
def test_one_target_frame_of_magi_is_the_mean_over_that_frame(run):
    """The target is one of frames 0..T-1, as MAGI has a loss on its first frame. Masks are drawn as without it."""
    batch = _numbered(8)
    targets = _targets(jax.random.key(1), np.arange(1600) + 7, 0)
    assert _is_uniform(targets, (0, 1, 2, 3))
    targets = targets[:8]
    metrics, seen = run(_magi(target_frames='one'), batch)
    chosen = seen['mask'][np.arange(8), targets]
    np.testing.assert_allclose(metrics['mse'], (10 * targets[:, None] + np.arange(TOKENS))[chosen].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['vb'], 1000 * metrics['mse'], rtol=1e-5)
    step, clips = _mask_keys(jax.random.key(1), batch['example'])
    clips = jax.vmap(lambda key: jax.random.split(key, 4)[0])(clips)
    np.testing.assert_array_equal(seen['mask'], draw_masks(step, clips, FRAMES, TOKENS, MagiMaskingConfig()))


@pytest.mark.slow
def test_one_target_frame_changes_no_draw_of_magi(run):
    masking = {'history_dropout': 0.3}
    one, every = (run(_magi(target_frames=name, **masking), _batch(), train=True)[1] for name in ('one', 'every'))
    jax.tree.map(np.testing.assert_array_equal, one, every)
