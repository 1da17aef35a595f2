"""VideoMAR's sampler against one without a cache, without joined batches and without prepared text, in plain loops."""

import dataclasses
import functools
import itertools
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
WIDTH, CLIPS, MASK_STEPS, DENOISE_STEPS, GUIDANCE = SHAPE.token_width, 2, 3, 4, 2.5
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
    sampler = VideomarSamplerConfig(**settings | {'x0_clip': float('inf'), 'token_clip': 1.0} | fields)
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

    def __init__(self, sampler, context, frames):
        self.sampler, self.context, self.frames = sampler, context, frames
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
            drawn = self._denoised(*z, weight, 0.9 + 10.0 ** -(number - self.context + 1), step_keys, bucket)
            for clip in range(CLIPS):
                clips[clip, number, revealed[clip]] = drawn[clip]
                hidden[clip, number, revealed[clip]] = False
        return clips[:, number] if number == self.context else np.clip(clips[:, number], -1, 1)

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
            x = (np.sqrt(before) * beta * clean + np.sqrt(1 - beta) * (1 - before) * x) / (1 - abar[i])
            if i:
                fraction = np.clip((logits + 1) / 2, 0, 1)
                log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(beta * (1 - before) / (1 - abar[i]))
                x = x + temperature * np.exp(0.5 * log_variance) * noise(i)
        return x


def _gap(sampler, context, frames):
    made = _make(sampler, context, frames)
    slow = Uncached(sampler, context, frames)
    return made, [np.abs(made[:, t] - slow.frame(made, t)).max() / np.abs(made).max() for t in range(context, frames)]


def test_image_to_video_is_uncached_sampling():
    """Tokens are bounded after the first generated frame: the bound is low enough to matter."""
    made, gaps = _gap(_sampler(), 1, SHAPE.frames)
    print(gaps, np.abs(made).max((0, 2, 3)))
    assert max(gaps) <= 1e-5
