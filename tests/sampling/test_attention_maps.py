"""The shown attention is what the model computes with: its weighted values are what the layer hands on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from magi_jax.config import (
    ConfigError,
    DataConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.models.conditions import Conditions
from magi_jax.models.magi import Magi
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.sampling.attention_maps import attention_to_past
from magi_jax.sampling.stream import clip_keys
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float
from tests.random_params import random_params

CONFIG = MagiConfig(
    data=DataConfig(frames=5, height=4, width=4, max_interval=3),
    tokenizer=TokenizerConfig(kind='identity', channels=12, downsample=2),
    model=MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=8, patch=1, head=MagiHeadConfig(width=8, blocks=1)),
    train=TrainConfig(compute_dtype='float32'),
)
OTHER = dataclasses.replace(CONFIG.model, noise_embedding='concat_token', teacher_forcing='masked')


def _made(config):
    tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    weights = sampling_weights(config, random_params(make_objective(config, tokenizer).init, scale=1.0))
    return VideoSampler(config, clip_shape(config, tokenizer)), weights, tokenizer


@pytest.mark.parametrize('model', [CONFIG.model, OTHER], ids=['complete', 'masked, noise token'])
def test_weighted_values_are_the_layers_output(model):
    sampler, weights, tokenizer = _made(dataclasses.replace(CONFIG, model=model))
    video = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4, 3), np.uint8)
    attention = attention_to_past(sampler, weights, tokenizer, video, 2)
    assert attention.shape == (2, 3, 2, 4, 4)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    assert attention.std() > 0.02  # not even: a wrong order of frames would show

    tokens = patchify(tokenizer.encode(to_float(jnp.asarray(video))), 1)
    state = sampler.start(weights, tokens, 4, Conditions(jnp.full(3, 2)), clip_keys(0, range(3)))
    hidden = jnp.zeros((3, 4, 12)), jnp.ones((3, 4), bool)
    arguments = (*hidden, state.conditions, state.positions[3], state.cache)
    _, captured = sampler.trunk.apply(
        weights['trunk'], *arguments, method=Magi.predict, capture_intermediates=True, mutable=['intermediates']
    )
    layer = captured['intermediates']['trunk']['blocks']['temporal_attention']
    values = jnp.concatenate([state.cache.v[:, :, :3], layer['qkv']['__call__'][0][2]], axis=2)[:, :, :, :4]
    values = rearrange(values, 'L B F N (H d) -> L B H N F d', H=2)
    mixed = rearrange(jnp.einsum('LBHNF,LBHNFd->LBNHd', attention, values), 'L B N H d -> L B N (H d)')
    trunk = weights['trunk']
    kernel = trunk['matrices']['trunk']['blocks']['temporal_attention']['out']['kernel'][:, 0]
    bias = trunk['params']['trunk']['blocks']['temporal_attention']['out']['bias']
    expected = jnp.einsum('LBND,LDE->LBNE', mixed, kernel) + bias[:, None, None]
    np.testing.assert_allclose(layer['out']['__call__'][0][:, :, 0, :4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('frames', [0, 5])
def test_too_few_or_too_many_frames_are_one_line(frames):
    sampler, weights, tokenizer = _made(CONFIG)
    with pytest.raises(ConfigError, match='give 1 to 4 frames'):
        attention_to_past(sampler, weights, tokenizer, np.zeros((1, frames, 4, 4, 3), np.uint8), 1)
