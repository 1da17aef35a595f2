"""Videos in the latents of a tokenizer that sees whole clips: contexts go in alone, whole latent videos come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import (
    ConfigError,
    DataConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    TrainConfig,
)
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.sampling.stream import clip_keys, sample_clips
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.patches import patchify, unpatchify
from magi_jax.tokenizers.pixels import to_float, to_uint8
from tests.random_params import random_params
from tests.tokenizers import toy

SIDE, PATCH = 16, 1


@pytest.fixture(scope='module')
def parts():
    """Sampler, parameters and tokenizer of a model trained on 9 frames = 3 latent frames."""
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = toy.install(patch)
        config = MagiConfig(
            data=DataConfig(height=SIDE, width=SIDE, frames=9),
            tokenizer=toy.CONFIG,
            model=MagiModelConfig(
                width=16, blocks=1, heads=2, mlp_width=24, patch=1, head=MagiHeadConfig(width=16, blocks=1)
            ),
            sampler=MagiSamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2),
            train=TrainConfig(compute_dtype='float32'),
        )
        sampler = VideoSampler(config, clip_shape(config, tokenizer))
        params = random_params(make_objective(config, tokenizer).init, scale=0.2)
        yield sampler, sampling_weights(config, params), tokenizer


def _context(frames):
    return np.random.default_rng(1).integers(0, 256, (2, frames, SIDE, SIDE, 3), np.uint8)


def test_a_clip_is_as_long_in_latents_as_its_tokenizer_says(parts):
    sampler, _, tokenizer = parts
    assert sampler.shape.frames == sampler.window_size(3) == 3 and sampler.shape.tokens == 4
    assert [tokenizer.latent_frames(frames) for frames in (0, 1, 2, 5, 6, 9)] == [0, 1, 2, 2, 3, 3]


def test_whole_latent_videos_are_decoded_and_the_context_is_kept(parts):
    """Eleven frames after five: two latent frames of context, and two made, which stand for more than is asked for."""
    sampler, params, tokenizer = parts
    context, interval = _context(5), np.asarray([1, 3], np.int32)
    seen = []

    def watch(made, total):
        made = list(made)
        seen.append((total, made))
        return made

    video = sample_clips(
        sampler, params, tokenizer, context, 11, Conditions(interval), clip_keys(7, [0, 1]), progress=watch
    )
    assert video.shape == (2, 11, SIDE, SIDE, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video[:, :5], context)
    ((total, made),) = seen
    assert total == len(made) == 2
    alone = patchify(jax.jit(lambda t, v: t.encode(v))(tokenizer, to_float(context)), PATCH)
    latents = unpatchify(jnp.concatenate([alone, *(tokens[:, None] for tokens in made)], axis=1), PATCH, 2)
    decoded = to_uint8(jax.jit(lambda t, z: t.decode(z))(tokenizer, latents))
    np.testing.assert_allclose(np.int32(video[:, 5:]), np.int32(decoded[:, 5:11]), atol=1)
    assert decoded.shape[1] == 13 and np.std(decoded[:, 5:]) > 5
    state = sampler.start(params, alone, 4, Conditions(jnp.asarray(interval)), clip_keys(7, [0, 1]))
    np.testing.assert_allclose(sampler.next_frame(params, state)[1], made[0], atol=1e-5)


def test_from_nothing_and_contexts_that_do_not_fit(parts):
    sampler, params, tokenizer = parts
    interval, keys = np.ones(2, np.int32), clip_keys(0, [0, 1])
    assert sample_clips(sampler, params, tokenizer, _context(0), 3, Conditions(interval), keys).shape == (
        2,
        3,
        SIDE,
        SIDE,
        3,
    )
    np.testing.assert_array_equal(
        sample_clips(sampler, params, tokenizer, _context(5), 5, Conditions(interval), keys), _context(5)
    )
    with pytest.raises(ConfigError, match=r'takes 1 \+ 4k frames, not 4: use 1 or 5'):
        sample_clips(sampler, params, tokenizer, _context(4), 9, Conditions(interval), keys)
    with pytest.raises(ConfigError, match='5 context frames are more than the 3 frames'):
        sample_clips(sampler, params, tokenizer, _context(5), 3, Conditions(interval), keys)
