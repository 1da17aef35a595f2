"""The KV-cached sampler against sampling without a cache; its window, batches, noise, compilations and streams."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import (
    ConfigError,
    MagiConfig,
    MagiHeadConfig,
    MagiMaskingConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.masking.tokens import masked_counts
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.sampling.stream import clip_keys, sample_clips, stream_clips
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import create_tokenizer
from tests.random_params import random_params

SHAPE = ClipShape(frames=4, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)
TRAINED, TOKENS, WIDTH = SHAPE.frames, SHAPE.tokens, SHAPE.token_width
CLIPS, MASK_STEPS, DENOISE_STEPS, CLIP = 2, 3, 4, 2.5
MODEL = MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=24, patch=1, head=MagiHeadConfig(width=16, blocks=1))
INTERVAL = np.asarray([2, 7])
VIDEO = np.float32(np.random.default_rng(3).normal(size=(CLIPS, 9, TOKENS, WIDTH)))


def _sampler(model=None, **sampler):
    settings = {'mask_steps': MASK_STEPS, 'denoise_steps': DENOISE_STEPS, 'x0_clip': CLIP, 'keep_frames': 3, **sampler}
    model = dataclasses.replace(MODEL, **(model or {}))
    masking = MagiMaskingConfig(history_dropout=0.1)
    train = TrainConfig(compute_dtype='float32')
    return VideoSampler(
        MagiConfig(model=model, masking=masking, sampler=MagiSamplerConfig(**settings), train=train), SHAPE
    )


def _weights(sampler):
    params = random_params(MaskedDiffusion(sampler.config, SHAPE).init, scale=0.2)
    return sampling_weights(sampler.config, params)


def _keys():
    return jax.random.split(jax.random.key(11), CLIPS)


def _start(sampler, weights, context, frames):
    return sampler.start(weights, jnp.asarray(VIDEO[:, :context]), frames, Conditions(jnp.asarray(INTERVAL)), _keys())


def _make(sampler, weights, context, frames):
    """New frames [B, n, N, C]."""
    state = _start(sampler, weights, context, frames)
    return np.stack(list(sampler.frames(weights, state, frames - context)), axis=1)


@pytest.fixture(scope='module')
def sampler():
    return _sampler()


@pytest.fixture(scope='module')
def weights(sampler):
    return _weights(sampler)


@functools.cache
def _networks(sampler):
    """The training pass of the trunk, and the head."""
    trunk = MaskedDiffusion(sampler.config, SHAPE).trunk
    return jax.jit(trunk.apply), jax.jit(sampler.head.apply)


def _uncached(sampler, weights, video, frame):
    """Frame number `frame` behind video[:, :frame], by the training pass over whole clips, no cache, in plain loops."""
    trunk, head = _networks(sampler)
    keys = [jax.random.fold_in(key, frame) for key in _keys()]
    order = np.stack([jax.random.permutation(jax.random.fold_in(key, 0), TOKENS) for key in keys])
    clips = np.zeros((CLIPS, TRAINED, TOKENS, WIDTH), np.float32)
    clips[:, :frame] = video[:, :frame]
    hidden = np.ones((CLIPS, TRAINED, TOKENS), bool)
    hidden[:, :frame] = False
    level = np.zeros((CLIPS, TRAINED), np.int32)
    remaining = [TOKENS, *masked_counts(TOKENS, MASK_STEPS)]
    bucket = int(-np.diff(remaining).min())
    complete = sampler.config.model.teacher_forcing == 'complete'
    for step in range(MASK_STEPS):
        revealed = order[:, remaining[step + 1] : remaining[step]]
        observed = clips if complete else None
        z = np.asarray(trunk(weights['trunk'], observed, clips, hidden, Conditions(INTERVAL, level)))[:, frame]
        step_keys = [jax.random.fold_in(key, step + 1) for key in keys]
        drawn = _denoised(head, weights['head'], np.take_along_axis(z, revealed[..., None], 1), step_keys, bucket)
        for clip in range(CLIPS):
            clips[clip, frame, revealed[clip]] = drawn[clip]
            hidden[clip, frame, revealed[clip]] = False
    return clips[:, frame]


def _denoised(head, weights, z, keys, bucket):
    rows = z.shape[1]

    def noise(i):
        drawn = [jax.random.normal(jax.random.fold_in(key, i), (bucket, WIDTH))[:rows] for key in keys]
        return np.float64(np.stack(drawn))

    timestep = np.rint(np.arange(DENOISE_STEPS) * 999 / (DENOISE_STEPS - 1)).astype(int)
    u = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.cumprod(1 - np.minimum(1 - u[1:] / u[:-1], 0.999))[timestep]
    x = noise(DENOISE_STEPS)
    for i in reversed(range(DENOISE_STEPS)):
        before = abar[i - 1] if i else 1.0
        beta = 1 - abar[i] / before
        output = np.float64(head({'params': weights}, np.float32(x), np.full(x.shape[:2], timestep[i]), z))
        predicted, logits = np.split(output, 2, axis=-1)
        clean = np.clip((x - np.sqrt(1 - abar[i]) * predicted) / np.sqrt(abar[i]), -CLIP, CLIP)
        x = (np.sqrt(before) * beta * clean + np.sqrt(1 - beta) * (1 - before) * x) / (1 - abar[i])
        if i:
            fraction = np.clip((logits + 1) / 2, 0, 1)
            log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(beta * (1 - before) / (1 - abar[i]))
            x = x + np.exp(0.5 * log_variance) * noise(i)
    return x


def test_cached_sampling_is_uncached_sampling(sampler, weights):
    made = _make(sampler, weights, 1, TRAINED)
    video = np.concatenate([VIDEO[:, :1], made], axis=1)
    for frame in range(1, TRAINED):
        np.testing.assert_allclose(made[:, frame - 1], _uncached(sampler, weights, video, frame), atol=1e-5)


def test_masked_teacher_forcing_too():
    sampler = _sampler({'teacher_forcing': 'masked', 'noise_embedding': 'concat_token', 'embed_at': 'every_block'})
    weights = _weights(sampler)
    made = _make(sampler, weights, 0, 3)
    for frame in (0, 2):
        np.testing.assert_allclose(made[:, frame], _uncached(sampler, weights, made, frame), atol=1e-5)


@pytest.mark.parametrize(('context', 'frames'), [(0, 3), (1, 7), (4, 6), (9, 11), (3, 3)])
def test_any_context_and_length(sampler, weights, context, frames):
    made = list(sampler.frames(weights, _start(sampler, weights, context, frames), frames - context))
    assert len(made) == frames - context
    for tokens in made:
        assert tokens.shape == (CLIPS, TOKENS, WIDTH) and tokens.dtype == jnp.float32
        assert (jnp.abs(tokens) <= CLIP + 1e-5).all()


def test_a_window_that_slides_is_a_fresh_start_from_its_last_frames(sampler, weights):
    """The fifth frame of a four frame window, and a start from frames 1 to 3 alone."""
    slid, tokens = sampler.next_frame(weights, _start(sampler, weights, 4, 9))
    fresh = sampler.start(weights, jnp.asarray(VIDEO[:, 1:4]), 9, Conditions(jnp.asarray(INTERVAL)), _keys())
    fresh, expected = sampler.next_frame(weights, fresh.replace(frame=jnp.asarray(4, jnp.int32)))
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert slid.cache.length == fresh.cache.length == 4 and slid.frame == fresh.frame == 5
    np.testing.assert_allclose(slid.window, fresh.window, atol=1e-5)
    np.testing.assert_allclose(slid.cache.k, fresh.cache.k, atol=1e-4)
    np.testing.assert_allclose(slid.cache.v, fresh.cache.v, atol=1e-4)


def test_prefill_is_what_committing_the_frames_would_have_left(sampler, weights):
    state = _start(sampler, weights, 0, 4)
    for _ in range(3):
        state, _ = sampler.next_frame(weights, state)
    made = state.window[:, :3]
    prefilled = sampler.start(weights, made, 4, Conditions(jnp.asarray(INTERVAL)), _keys())
    assert prefilled.cache.length == state.cache.length == 3 and prefilled.frame == state.frame == 3
    np.testing.assert_allclose(prefilled.cache.k[:, :, :3], state.cache.k[:, :, :3], atol=1e-4)
    next_frames = [sampler.next_frame(weights, s)[1] for s in (prefilled, state)]
    np.testing.assert_allclose(*next_frames, atol=1e-5)


def test_a_context_longer_than_the_window_counts_by_its_end(sampler, weights):
    long = _start(sampler, weights, 9, 11)
    np.testing.assert_array_equal(long.window, VIDEO[:, 5:9])
    assert long.cache.length == 4 and long.frame == 9


def test_clips_do_not_depend_on_their_batch(sampler, weights):
    """The first clip as the second of another batch."""
    video, interval = jnp.asarray(VIDEO[::-1, :1].copy()), jnp.asarray(INTERVAL[::-1].copy())
    keys = jnp.stack([jax.random.key(5), _keys()[0]])
    other = np.stack(
        list(sampler.frames(weights, sampler.start(weights, 2 * video, 3, Conditions(interval), keys), 2)), axis=1
    )
    state = sampler.start(weights, video * jnp.asarray([2.0, 1.0])[:, None, None, None], 3, Conditions(interval), keys)
    moved = np.stack(list(sampler.frames(weights, state, 2)), axis=1)
    reference = _make(sampler, weights, 1, 3)
    np.testing.assert_allclose(moved[1], reference[0], atol=1e-5)
    np.testing.assert_allclose(moved[0], other[0], atol=1e-5)
    assert np.abs(moved[0] - moved[1]).mean() > 0.1 and np.abs(other[1] - moved[1]).mean() > 1e-3


def test_arguments_survive_the_donated_state(sampler, weights):
    context, conditions, keys = jnp.asarray(VIDEO[:, :4]), Conditions(jnp.asarray(INTERVAL)), _keys()
    videos = [
        np.stack(list(sampler.frames(weights, sampler.start(weights, context, 5, conditions, keys), 1)))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*videos)


def test_one_compilation_for_all_frames_and_lengths(sampler, weights):
    _make(sampler, weights, 1, 3)
    before = VideoSampler.next_frame._cache_size(), VideoSampler._prefill._cache_size()
    for context, frames in [(0, 2), (2, 8), (4, 5)]:
        _make(sampler, weights, context, frames)
    assert (VideoSampler.next_frame._cache_size(), VideoSampler._prefill._cache_size()) == before


def test_interpolated_positions_stretch_over_the_video_and_share_a_bucket():
    sampler = _sampler(long_video='interpolate')
    assert [sampler.window_size(frames) for frames in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 16]
    weights = _weights(sampler)
    state = _start(sampler, weights, 1, 7)
    np.testing.assert_allclose(state.positions, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    made = list(sampler.frames(weights, state, 6))
    assert len(made) == 6 and np.isfinite(made).all()
    compiled = VideoSampler.next_frame._cache_size()
    stretched = _make(sampler, weights, 2, 5)
    assert VideoSampler.next_frame._cache_size() == compiled
    # Within the trained length there is nothing to stretch: the positions are those of 'slide'.
    np.testing.assert_array_equal(_start(sampler, weights, 1, 4).positions, np.arange(4))
    assert np.isfinite(stretched).all()


def test_observed_frames_carry_the_asked_noise_and_level(sampler, weights):
    """The level is a label; the noise is added only when asked for, and belongs to (clip, frame)."""
    labelled, noisy = (_sampler(context_level=3, context_noise=noise) for noise in (False, True))
    states = [_start(s, weights, 3, 4) for s in (sampler, labelled, noisy)]
    assert jnp.abs(states[0].cache.k[:, :, :3] - states[1].cache.k[:, :, :3]).max() > 1e-3
    np.testing.assert_array_equal(states[1].window, states[0].window)
    noise = np.asarray(states[2].window - states[0].window)[:, :3]
    assert noise.std() == pytest.approx(sampler.config.masking.noise_std[3], rel=0.25)
    assert len(np.unique(noise)) > 0.9 * noise.size
    later = noisy.start(weights, jnp.asarray(VIDEO[:, :6]), 7, Conditions(jnp.asarray(INTERVAL)), _keys())
    np.testing.assert_allclose(later.window[:, 0] - VIDEO[:, 2], noise[:, 2], atol=1e-6)  # the same noise for frame 2
    state, tokens = noisy.next_frame(weights, states[2])
    committed = np.asarray(state.window[:, 3] - tokens)
    assert 0.2 < committed.std() / sampler.config.masking.noise_std[3] < 2


def test_guidance_is_nothing_without_history_and_something_with_it(sampler, weights):
    guided = _sampler(guidance=1.5)
    for context, differs in [(0, False), (2, True)]:
        plain, led = (s.next_frame(weights, _start(s, weights, context, 4))[1] for s in (sampler, guided))
        assert (jnp.abs(plain - led).max() > 1e-2) == differs
        np.testing.assert_allclose(led, plain, atol=CLIP * 2 if differs else 1e-5)


def test_temperature_falls_over_the_generated_frames():
    """VideoMAR's 0.9 + 10^-n behind three frames of context, and an opening of two frames at its own temperature."""
    decaying = _sampler(temperature=0.9, temperature_decay=1.0, opening_temperature=0.3)

    def temperature(frame, context):
        state = SimpleNamespace(frame=jnp.int32(frame), context=jnp.int32(context))
        return float(decaying._recipe(state).temperature)

    np.testing.assert_allclose([temperature(frame, 3) for frame in (3, 4, 5, 99)], [1.0, 0.91, 0.901, 0.9], rtol=1e-6)
    np.testing.assert_allclose([temperature(frame, 0) for frame in (0, 1, 2)], [0.3, 0.3, 0.901], rtol=1e-6)


def test_impossible_requests_are_named(sampler, weights):
    untrained = dataclasses.replace(
        sampler.config, masking=MagiMaskingConfig(), sampler=MagiSamplerConfig(guidance=2.0)
    )
    with pytest.raises(ConfigError, match=r'sampler.guidance = 2.0 needs .* masking.history_dropout > 0'):
        _start(VideoSampler(untrained, SHAPE), weights, 1, 4)
    with pytest.raises(ConfigError, match='5 context frames are more than the 4 frames'):
        _start(sampler, weights, 5, 4)
    _start(_sampler(keep_frames=4), weights, 1, 4)  # nothing will slide
    with pytest.raises(ConfigError, match=r'sampler.keep_frames = 4 does not allow a video of .*: choose 1 to 3'):
        _start(_sampler(keep_frames=4), weights, 1, 5)


@pytest.fixture(scope='module')
def pixels():
    """A tokenizer whose frames of 1x5 pixels are the sampler's tokens."""
    return create_tokenizer(TokenizerConfig(kind='identity', downsample=1, channels=3), jax.random.key(0), 1, TOKENS)


def _request(numbers, frames=7):
    """What clips of these numbers are made from: the window slides."""
    context = np.random.default_rng(1).integers(0, 256, (9, 2, 1, TOKENS, 3), np.uint8)[list(numbers)]
    return context, frames, Conditions(INTERVAL[:1].repeat(len(numbers))), clip_keys(5, numbers)


def test_a_stream_gives_the_frames_of_the_whole_video(sampler, weights, pixels):
    video = np.asarray(sample_clips(sampler, weights, pixels, *_request([0, 1])))
    frames = [np.asarray(frame) for frame in stream_clips(sampler, weights, pixels, *_request([0, 1]))]
    assert len(frames) == 5 and frames[0].shape == (2, 1, TOKENS, 3) and frames[0].dtype == np.uint8
    np.testing.assert_allclose(np.stack(frames, axis=1).astype(int), video[:, 2:], atol=1)
    np.testing.assert_array_equal(video[:, :2], _request([0, 1])[0])
    assert video[:, 2:].std() > 10 and (video[:, -1] != video[:, -2]).any()


def test_a_stream_is_lazy_and_refuses_at_once(sampler, weights, pixels):
    assert len(list(itertools.islice(stream_clips(sampler, weights, pixels, *_request([0, 1], 10**9)), 2))) == 2
    with pytest.raises(ConfigError, match='2 context frames are more than the 1 frames'):
        stream_clips(sampler, weights, pixels, *_request([0, 1], 1))
    temporal = pixels.replace(config=TokenizerConfig(kind='omni'))
    with pytest.raises(ConfigError, match='omni decodes whole videos, not frame by frame: sample without streaming'):
        stream_clips(sampler, weights, temporal, *_request([0, 1]))


def test_a_clip_is_known_by_its_number(sampler, weights, pixels):
    """Clips 7 and 0 of a seed, whoever stands beside them."""
    first, second = (
        np.asarray(sample_clips(sampler, weights, pixels, *_request(numbers))).astype(int)
        for numbers in ([7, 0], [0, 3])
    )
    np.testing.assert_allclose(first[1], second[0], atol=1)
    assert (first[0, 2:] != second[1, 2:]).mean() > 0.25  # many are black or white
