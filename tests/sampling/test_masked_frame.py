import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.diffusion.schedule import respaced_process
from magi_jax.masking.tokens import masked_counts, reveal_counts
from magi_jax.sampling.masked_frame import FrameNetworks, RevealRecipe, revealed_fraction, sample_frame

TOKENS, WIDTH = 7, 3
KEYS = jax.random.split(jax.random.key(5), 2)


def _recipe(mask_steps, temperature=1.0, x0_clip=3.0, **settings):
    return RevealRecipe(mask_steps, respaced_process(1000, 3, 999), 'clean', temperature, x0_clip, **settings)


def _book_keeper(tokens, mask):
    """z of a token = (its index, number of tokens revealed so far, sum of their values)."""
    revealed = ~mask
    count = revealed.sum(-1, keepdims=True)
    seen = jnp.where(revealed[..., None], tokens, 0.0).sum((1, 2))[:, None]
    index = jnp.arange(tokens.shape[1])[None]
    columns = [jnp.broadcast_to(column, mask.shape) for column in (index, count, seen)]
    return jnp.stack(columns, axis=-1).astype(jnp.float32)


def _unguided(tokens, mask):
    return _book_keeper(tokens, mask), None


def _write_condition(z):
    """A clean-token head that answers z itself: what is drawn tells when it was drawn."""
    return lambda x, t: jnp.concatenate([z, -jnp.ones_like(z)], axis=-1)


@pytest.mark.parametrize('mask_steps', [1, 3, 7, 20])
def test_every_token_is_drawn_once_at_its_place_and_in_its_turn(mask_steps):
    networks = FrameNetworks(_unguided, _write_condition)
    recipe = _recipe(mask_steps, temperature=0.0, x0_clip=np.inf)
    frame = np.asarray(jax.jit(lambda: sample_frame(networks, recipe, KEYS, (TOKENS, WIDTH)))())
    counts = [count for count in reveal_counts(TOKENS, mask_steps) if count]
    turns = np.repeat(np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    for clip in frame:
        np.testing.assert_allclose(clip[:, 0], np.arange(TOKENS), atol=1e-5)  # at its own place
        np.testing.assert_allclose(sorted(clip[:, 1]), turns, atol=1e-5)  # the number of earlier ones
        order = np.argsort(clip[:, 1], kind='stable')
        for turn in set(turns):  # and knowing their values
            earlier = clip[order][turns < turn].sum()
            np.testing.assert_allclose(clip[order][turns == turn][:, 2], earlier, rtol=1e-5, atol=1e-4)


def test_orders_are_random_and_belong_to_the_clip():
    networks, recipe = FrameNetworks(_unguided, _write_condition), _recipe(TOKENS, temperature=0.0, x0_clip=np.inf)
    sample = jax.jit(lambda keys: sample_frame(networks, recipe, keys, (TOKENS, WIDTH))[..., 1])
    orders = np.asarray(sample(jax.random.split(jax.random.key(0), 500)))
    for token in range(TOKENS):
        np.testing.assert_allclose(np.bincount(np.rint(orders[:, token]).astype(int)) / 500, 1 / TOKENS, atol=0.06)
    np.testing.assert_array_equal(sample(KEYS)[1], sample(KEYS[::-1])[0])


def test_temperature_scales_the_noise_and_the_clip_bounds_the_tokens():
    def large(x, t):
        return jnp.concatenate([jnp.full_like(x, 50.0), jnp.zeros_like(x)], axis=-1)

    def sample(denoise, **settings):
        networks = FrameNetworks(_unguided, lambda z: denoise)
        return jax.jit(lambda: sample_frame(networks, _recipe(2, **settings), KEYS, (TOKENS, WIDTH)))()

    np.testing.assert_allclose(sample(large, x0_clip=1.5), 1.5, rtol=1e-5)
    np.testing.assert_allclose(sample(large, x0_clip=np.inf), 50.0, rtol=1e-5)

    def echo(x, t):  # a network that believes its input: the noise of earlier steps stays visible
        return jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)

    cold, warm = (sample(echo, temperature=t, x0_clip=np.inf) for t in (0.0, 1.0))
    assert jnp.abs(cold).mean() > 0.1  # what it started from
    assert not sample(echo, temperature=0.0, solver='ddim').any()
    tepid = sample(echo, temperature=0.5, x0_clip=np.inf)
    np.testing.assert_allclose(tepid - cold, 0.5 * (warm - cold), atol=1e-4)
    assert jnp.abs(warm - cold).mean() > 0.1


@pytest.mark.parametrize(('schedule', 'revealed'), [('linear', [1 / 7, 4 / 7, 6 / 7]), ('constant', [1, 1, 1])])
def test_guidance_leads_away_from_the_blind_answer_and_grows_with_the_revealed_part(schedule, revealed):
    """The seeing network answers 3, the blind one 1: guided by g, 1 + 2 g."""

    def answering(value):
        return lambda tokens, mask: _book_keeper(tokens, mask) * 0 + value

    seeing, blind = answering(3.0), answering(1.0)
    networks = FrameNetworks(lambda *frame: (seeing(*frame), blind(*frame)), _write_condition)
    recipe = _recipe(3, temperature=0.0, x0_clip=np.inf, guidance=1.5, guidance_schedule=schedule)
    frame = np.asarray(jax.jit(lambda: sample_frame(networks, recipe, KEYS, (TOKENS, WIDTH)))())
    weights = np.repeat(1 + 0.5 * np.asarray(revealed), [1, 3, 3])
    for clip in frame:
        np.testing.assert_allclose(np.sort(clip[:, 0]), 1 + 2 * weights, rtol=1e-5)


def _mar_guidance(tokens, steps, guidance):
    """MAR's linear guidance of each mask step, by its rule for the number of tokens that stay hidden."""
    hidden, weights = tokens, []
    for step in range(steps):
        length = np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps))
        length = np.maximum(1, np.minimum(hidden - 1, length))
        weights.append(1 + (guidance - 1) * (tokens - length) / tokens)
        hidden = 0 if step == steps - 1 else length
    return weights


@pytest.mark.parametrize('tokens', [1, 2, 7, 16, 64, 256])
@pytest.mark.parametrize('steps', [1, 2, 3, 8, 64, 300])
def test_linear_guidance_is_that_of_mar_in_every_step(tokens, steps):
    weights = 1 + (3.0 - 1) * revealed_fraction(masked_counts(tokens, steps), tokens)
    np.testing.assert_allclose(weights, _mar_guidance(tokens, steps, 3.0), rtol=1e-12)
