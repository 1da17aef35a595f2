import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiMaskingConfig
from magi_jax.masking.tokens import draw_masks, mask_ratio, masked_counts, random_ranks, reveal_counts

# Tokens revealed by each step of MAR's sampler.
REVEALED = {
    (256, 8): [5, 15, 24, 31, 39, 45, 48, 49],
    (256, 16): [2, 3, 7, 8, 11, 13, 15, 16, 19, 20, 22, 23, 23, 25, 24, 25],
    (256, 64): [1] * 13
    + [2, 3, 2, 2, 3, 3, 3, 3, 3, 3, 4, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 4, 5, 5, 5]
    + [5, 5, 6, 5, 5, 6, 5, 6, 6, 6, 5, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6, 6, 7, 6, 6, 6],
    (64, 8): [2, 3, 6, 8, 10, 11, 12, 12],
    (64, 64): [1] * 64,
    (7, 7): [1] * 7,
    (7, 1): [7],
}


@pytest.mark.parametrize(('tokens', 'steps'), REVEALED)
def test_reveal_counts_are_mars(tokens, steps):
    np.testing.assert_array_equal(reveal_counts(tokens, steps), REVEALED[tokens, steps])


@pytest.mark.parametrize(('tokens', 'steps', 'largest'), [(256, 32, 13), (64, 16, 6), (64, 32, 3)])
def test_largest_reveal(tokens, steps, largest):
    assert reveal_counts(tokens, steps).max() == largest


def test_counts_still_masked():
    assert masked_counts(256, 64)[[15, 31, 47, 59, 62, 63]].tolist() == [236, 181, 97, 25, 6, 0]


@pytest.mark.parametrize(('tokens', 'steps'), [(64, 128), (7, 20), (1, 1), (1, 3), (13, 5)])
def test_every_token_is_revealed_whatever_the_number_of_steps(tokens, steps):
    counts = reveal_counts(tokens, steps)
    assert counts.sum() == tokens and (counts >= 0).all() and len(counts) == steps
    assert (counts == 0).sum() == max(0, steps - tokens)


def test_mask_ratio_law():
    config = MagiMaskingConfig()
    ratio = np.asarray(mask_ratio((jnp.arange(200_000) + 0.5) / 200_000, config), np.float64)
    assert ratio.min() >= 0.7 and ratio.max() <= 1.0
    # The references are printed with four digits.
    measured = [ratio.mean(), ratio.std(), *np.quantile(ratio, [0.25, 0.5, 0.75])]
    np.testing.assert_allclose(measured, [0.8670, 0.0835, 0.7995, 0.8743, 0.9391], atol=5e-5)
    for tokens, mean, smallest, all_masked in [(256, 222.5, 180, 0.016), (64, 56.0, 45, 0.065)]:
        hidden = np.ceil(tokens * ratio)
        assert hidden.mean() == pytest.approx(mean, abs=0.05)
        assert (hidden.min(), hidden.max()) == (smallest, tokens)
        assert (hidden == tokens).mean() == pytest.approx(all_masked, abs=5e-4)


def test_random_ranks_are_uniform_permutations():
    ranks = np.asarray(random_ranks(jax.random.key(0), (4000, 5)))
    np.testing.assert_array_equal(np.sort(ranks, axis=1), np.tile(np.arange(5), (4000, 1)))
    for token in range(5):
        np.testing.assert_allclose(np.bincount(ranks[:, token]) / 4000, 0.2, atol=0.03)


def _masks(draw_per, key=1, clips=(3, 8, 1, 5), frames=11, tokens=97):
    config = dataclasses.replace(MagiMaskingConfig(), draw_per=draw_per)
    draw = jax.jit(functools.partial(draw_masks, frames=frames, tokens=tokens, config=config))
    clip_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9), jnp.asarray(clips))
    return np.asarray(draw(jax.random.key(key), clip_keys))


@pytest.mark.parametrize('draw_per', ['frame', 'clip', 'batch'])
def test_masks_hide_between_the_smallest_and_largest_ratio(draw_per):
    masks = _masks(draw_per)
    assert masks.shape == (4, 11, 97) and masks.dtype == bool
    assert masks.sum(-1).min() >= np.ceil(0.7 * 97) and masks.sum(-1).max() <= 97


def test_what_frames_clips_and_batches_share():
    per_frame, per_clip, per_batch = (_masks(draw_per) for draw_per in ('frame', 'clip', 'batch'))
    assert all(len(set(counts)) > 3 for counts in per_frame.sum(-1))
    assert (per_clip == per_clip[:, :1]).all() and len(set(per_clip.sum(-1)[:, 0])) > 1
    assert len(set(per_batch.sum(-1).ravel())) == 1  # one ratio ...
    assert len(np.unique(per_batch.reshape(44, 97), axis=0)) == 44  # ... an order for each clip and frame
    assert _masks('batch', key=0).sum() != per_batch.sum()


@pytest.mark.parametrize('draw_per', ['frame', 'clip'])
def test_masks_of_a_clip_depend_on_its_key_alone(draw_per):
    np.testing.assert_array_equal(_masks(draw_per)[[2, 0]], _masks(draw_per, key=0, clips=(1, 3)))


def test_hidden_tokens_are_spread_evenly():
    hidden = _masks('frame', clips=range(997), frames=3, tokens=7).reshape(-1, 7).mean(0)
    np.testing.assert_allclose(hidden, hidden.mean(), atol=0.02)
