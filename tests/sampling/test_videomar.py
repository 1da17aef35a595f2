"""VideoMAR's sampler against one without a cache, without joined batches and without prepared text, in plain loops."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import (
    HeadConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VideomarConfig,
    VideomarModelConfig,
    VideomarSamplerConfig,
)
from magi_jax.masking.tokens import masked_counts
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.sampling.stream import clip_keys, sample_clips, stream_clips
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import create_tokenizer
from tests.random_params import random_params

SHAPE = ClipShape(frames=4, rows=1, columns=5, token_width=3, intervals=1, noise_levels=1)
LARGER = dataclasses.replace(SHAPE, rows=2, columns=4)
WIDTH, CLIPS, MASK_STEPS, DENOISE_STEPS, GUIDANCE, CLEAN_BOUND = SHAPE.token_width, 2, 3, 4, 2.5, 2.5
MODEL = VideomarModelConfig(
    width=16,
    blocks=2,
    heads=2,
    mlp_width=24,
    rope_split=(4, 2, 2),
    rope_base=100.0,
    head=HeadConfig(width=16, blocks=1),
)
TEXT = TextConfig(encoder='words', length=4, width=5)


def _sampler(shape=SHAPE, text=TEXT, **fields):
    settings = {'mask_steps': MASK_STEPS, 'denoise_steps': DENOISE_STEPS, 'guidance': GUIDANCE, 'keep_frames': 2}
    sampler = VideomarSamplerConfig(**settings | {'x0_clip': CLEAN_BOUND} | fields)
    config = VideomarConfig(model=MODEL, text=text, sampler=sampler, train=TrainConfig(compute_dtype='float32'))
    return VideoSampler(config, shape)


@functools.cache
def _params(text=TEXT):
    """Return the parameters of the trained shape."""
    return random_params(MaskedDiffusion(_sampler(text=text).config, SHAPE).init, scale=0.2)


def _weights(sampler):
    return sampling_weights(sampler.config, _params(sampler.config.text))


def _keys(numbers=range(CLIPS)):
    return clip_keys(11, list(numbers))


def _conditions(numbers=range(CLIPS), text=True):
    rng, numbers = np.random.default_rng(6), list(numbers)
    states = np.float32(rng.normal(size=(9, TEXT.length, TEXT.width)))[numbers]
    mask = (np.arange(TEXT.length)[None] < rng.integers(1, 5, (9, 1)))[numbers]
    text = TextStates(states, mask, np.ones((len(numbers),), bool)) if text else None
    return Conditions(np.ones((len(numbers),), np.int32), text=text)


def _video(tokens, frames=9):
    return np.float32(np.random.default_rng(3).normal(size=(CLIPS, frames, tokens, WIDTH)))


def _start(sampler, context, frames):
    tokens = jnp.asarray(_video(sampler.shape.tokens)[:, :context])
    return sampler.start(
        _weights(sampler), tokens, frames, _conditions(text=bool(sampler.config.text.encoder)), _keys()
    )


def _make(sampler, context, frames):
    """Return context and new frames [B, T, N, C]."""
    new = list(sampler.frames(_weights(sampler), _start(sampler, context, frames), frames - context))
    return np.concatenate([_video(sampler.shape.tokens)[:, :context], np.stack(new, axis=1)], axis=1)


class Uncached:
    """One frame from complete frames before it: the training pass over the whole video at every mask step.

    Passes with and without text are separate, from states.
    """

    def __init__(self, sampler, context):
        self.sampler, self.context = sampler, context
        self.params = _params(sampler.config.text)
        conditions = _conditions()
        trunk, head = MaskedDiffusion(sampler.config, sampler.shape).trunk, sampler.head
        self._trunk = jax.jit(
            lambda video, mask, keep: trunk.apply(
                {'params': self.params['trunk']},
                None,
                video,
                mask,
                conditions.replace(text=conditions.text.replace(keep=jnp.full((CLIPS,), keep))),
            )
        )
        self._head = jax.jit(lambda *inputs: head.apply({'params': self.params['head']}, *inputs))

    def frame(self, video, number):
        """Sample frame `number` [B, N, C] behind video[:, :number]."""
        tokens = self.sampler.shape.tokens
        keys = [jax.random.fold_in(key, number) for key in _keys()]
        order = np.stack([jax.random.permutation(jax.random.fold_in(key, 0), tokens) for key in keys])
        clips, hidden = video.copy(), np.ones(video.shape[:3], bool)
        hidden[:, :number] = False
        remaining = [tokens, *masked_counts(tokens, MASK_STEPS)]
        bucket = int(-np.diff(remaining).min())
        for step in range(MASK_STEPS):
            revealed = order[:, remaining[step + 1] : remaining[step]]
            z = [self._trunk(clips, hidden, keep)[:, number] for keep in (True, False)]
            z = [np.take_along_axis(np.asarray(x), revealed[..., None], 1) for x in z]
            weight = 1 + (GUIDANCE - 1) * (tokens - max(remaining[step + 1], 1)) / tokens
            step_keys = [jax.random.fold_in(key, step + 1) for key in keys]
            temperature = 0.9 + 10.0 ** -(number - self.context + 1)
            drawn = self._denoised(*z, weight, temperature, step_keys, bucket)
            for clip in range(CLIPS):
                clips[clip, number, revealed[clip]] = drawn[clip]
                hidden[clip, number, revealed[clip]] = False
        return clips[:, number] if number == self.context else np.clip(clips[:, number], -2, 2)

    def _denoised(self, z, without_text, weight, temperature, keys, bucket):
        shape = (bucket, WIDTH)

        def noise(i):
            drawn = [jax.random.normal(jax.random.fold_in(key, i), shape)[: z.shape[1]] for key in keys]
            return np.float64(np.stack(drawn))

        timestep = np.rint(np.arange(DENOISE_STEPS) * 999 / (DENOISE_STEPS - 1)).astype(int)
        u = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        abar = np.cumprod(1 - np.minimum(1 - u[1:] / u[:-1], 0.999))[timestep]
        x = noise(DENOISE_STEPS)
        for i in reversed(range(DENOISE_STEPS)):
            before = abar[i - 1] if i else 1.0
            beta = 1 - abar[i] / before
            inputs = np.float32(x), np.full(x.shape[:2], timestep[i])
            (with_text, logits), (plain, _) = (
                np.split(np.float64(self._head(*inputs, c)), 2, axis=-1) for c in (z, without_text)
            )
            clean = (x - np.sqrt(1 - abar[i]) * (plain + weight * (with_text - plain))) / np.sqrt(abar[i])
            clean = np.clip(clean, -CLEAN_BOUND, CLEAN_BOUND)
            x = (np.sqrt(before) * beta * clean + np.sqrt(1 - beta) * (1 - before) * x) / (1 - abar[i])
            if i:
                fraction = np.clip((logits + 1) / 2, 0, 1)
                log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(beta * (1 - before) / (1 - abar[i]))
                x = x + temperature * np.exp(0.5 * log_variance) * noise(i)
        return x


def _assert_uncached(sampler, made, context):
    """Compare the new frames of `made` [B, T, N, C] with frames sampled without a cache."""
    slow = Uncached(sampler, context)
    for number in range(context, made.shape[1]):
        np.testing.assert_allclose(made[:, number], slow.frame(made, number), rtol=0, atol=1e-5)


def test_image_to_video_is_uncached_sampling():
    """Tokens are bounded by 2 after the first generated frame."""
    made = _make(_sampler(), 1, SHAPE.frames)
    _assert_uncached(_sampler(), made, 1)
    largest = np.abs(made).max((0, 2, 3))
    assert largest[1] > 2.2 and (largest[2:] == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize(('shape', 'context'), [(LARGER, 2), (SHAPE, 0)])
def test_longer_and_larger_than_trained_is_uncached_sampling(shape, context):
    """Positions go on: six frames where four were trained, also of 2 x 4 tokens where 1 x 5 were trained."""
    sampler, frames = _sampler(shape), SHAPE.frames + 2
    state = _start(sampler, context, frames)
    assert state.cache.capacity == sampler.window_size(frames) == 8
    np.testing.assert_array_equal(state.positions, np.arange(8))
    _assert_uncached(sampler, _make(sampler, context, frames), context)


@pytest.mark.slow
def test_a_window_that_slides_starts_again_from_its_last_frames():
    """The fifth frame of a window of four is the third behind frames 2 and 3 alone, at the same temperature."""
    sampler = _sampler(long_video='slide', temperature_decay=0.0)
    state = _start(sampler, 1, 6)
    assert state.cache.capacity == SHAPE.frames
    made = []
    for _ in range(4):
        state, tokens = sampler.next_frame(_weights(sampler), state)
        made.append(tokens)
    assert int(state.cache.length) == 3 and int(state.frame) == 5
    again = sampler.start(_weights(sampler), jnp.stack(made[1:3], axis=1), 6, _conditions(), _keys())
    again = again.replace(frame=jnp.int32(4), context=jnp.int32(1))  # random numbers and bound of the fifth frame
    np.testing.assert_allclose(sampler.next_frame(_weights(sampler), again)[1], made[3], rtol=0, atol=1e-5)


def test_guidance_is_two_passes_with_own_caches():
    """The caches and predictions of the joined clips are those of separate clips with and without text."""
    sampler, weights = _sampler(), _weights(_sampler())
    state = _start(sampler, 1, SHAPE.frames)
    joined = [jax.tree.map(np.array, state.cache)]  # the state is donated
    video, conditions = _video(SHAPE.tokens), _conditions()
    state, first = sampler.next_frame(weights, state)
    joined.append(state.cache)
    tokens = jnp.stack([jnp.asarray(video[:, 0]), first], axis=1)
    observe = jax.jit(functools.partial(sampler.trunk.apply, method='observe'))
    for half, own in enumerate((conditions, conditions.without_text())):
        empty = sampler.trunk.empty_cache(CLIPS, 0)
        k, v = observe(weights['trunk'], tokens, own, jnp.arange(2.0), empty)
        for frames, cache in enumerate(joined, 1):
            assert int(cache.length) == frames and cache.k.shape[1] == 2 * CLIPS
            for got, expected in ((cache.k, k), (cache.v, v)):
                got = got[:, CLIPS * half : CLIPS * (half + 1), :frames]
                np.testing.assert_allclose(got, expected[:, :, :frames], rtol=0, atol=1e-5)
    assert jnp.abs(joined[0].v[1:, :CLIPS, 0] - joined[0].v[1:, CLIPS:, 0]).max() > 1e-2


def test_without_text_or_guidance_clips_are_not_doubled():
    plain = TextConfig()
    for sampler in (_sampler(guidance=1.0), _sampler(text=plain)):
        start = functools.partial(_start, sampler, 1, SHAPE.frames)
        assert jax.eval_shape(start).cache.k.shape[1] == CLIPS


def test_temperature_rules():
    """The paper's constant and 0.9 + 10^-(n + 1), n = 0 for the first generated frame, and the code's linear rule."""

    def temperatures(**fields):
        states = (SimpleNamespace(frame=jnp.int32(j), context=jnp.int32(1), frames=jnp.int32(6)) for j in range(1, 6))
        return [float(_sampler(**fields)._recipe(state).temperature) for state in states]

    n = np.arange(5)
    expected = {
        (): [1.0, 0.91, 0.901, 0.9001, 0.90001],
        (('temperature', 0.96), ('temperature_decay', 0.0)): [0.96] * 5,
        (('temperature', 0.95), ('temperature_decay', 0.0), ('temperature_drop', 0.05)): 0.95 - 0.05 * n / 5,
    }
    for fields, values in expected.items():
        np.testing.assert_allclose(temperatures(**dict(fields)), values, rtol=1e-6)


@pytest.fixture(scope='module')
def pixels():
    """A tokenizer whose frames of 1 x 5 pixels are the sampler's tokens."""
    config = TokenizerConfig(kind='identity', downsample=1, channels=WIDTH)
    return create_tokenizer(config, jax.random.key(0), SHAPE.rows, SHAPE.columns)


def _request(numbers, frames=SHAPE.frames):
    video = np.random.default_rng(1).integers(0, 256, (9, 1, 1, SHAPE.columns, 3), np.uint8)
    return video[list(numbers)], frames, _conditions(numbers), _keys(numbers)


def test_a_clip_is_known_by_seed_and_number_and_a_stream_is_the_video(pixels):
    """Clips 7 and 0 of a seed with their prompts, in two batches; and the frames of a stream."""
    sampler = _sampler()
    make = functools.partial(sample_clips, sampler, _weights(sampler), pixels)
    first, second = (np.asarray(make(*_request(numbers))).astype(int) for numbers in ([7, 0], [0, 3]))
    np.testing.assert_allclose(first[1], second[0], atol=1)
    assert (first[0, 1:] != second[1, 1:]).mean() > 0.25
    np.testing.assert_array_equal(first[:, 0], _request([7, 0])[0][:, 0])
    stream = list(stream_clips(sampler, _weights(sampler), pixels, *_request([7, 0])))
    assert len(stream) == SHAPE.frames - 1 and stream[0].dtype == np.uint8
    np.testing.assert_allclose(np.stack(stream, axis=1).astype(int), first[:, 1:], atol=1)
