"""Clips shared by eight devices are the clips of one, and no device holds the cache of the others' clips."""

import functools

import jax
import numpy as np
import pytest

from magi_jax.config import (
    HeadConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    MeshConfig,
    TextConfig,
    TrainConfig,
    VideomarConfig,
    VideomarModelConfig,
    VideomarSamplerConfig,
)
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding
from magi_jax.sampling.video import VideoSampler, sampling_weights
from tests.random_params import random_params

CLIPS = 8
ONE = MeshConfig(data=1)
# Five sites do not divide by two or four: the last device's are padding in part. Two heads divide by two only.
MESHES = (
    MeshConfig(data=8),
    MeshConfig(data=1, sequence=4),
    MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
)
SHAPE = ClipShape(frames=3, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)


def _magi():
    model = MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=24, head=MagiHeadConfig(width=16, blocks=1))
    sampler = MagiSamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2)
    return MagiConfig(model=model, sampler=sampler, train=TrainConfig(compute_dtype='float32'))


def _videomar():
    head, parts = HeadConfig(width=16, blocks=1), (4, 2, 2)
    return VideomarConfig(
        text=TextConfig(encoder='words', length=4, width=6),
        model=VideomarModelConfig(width=16, blocks=2, heads=2, mlp_width=24, head=head, rope_split=parts),
        sampler=VideomarSamplerConfig(mask_steps=2, denoise_steps=3, guidance=3.0),
        train=TrainConfig(compute_dtype='float32'),
    )


CONFIGS = {'magi': _magi, 'videomar': _videomar}


def _conditions(config):
    text, settings, rng = None, config.text, np.random.default_rng(1)
    if settings.encoder:
        states = rng.normal(size=(CLIPS, settings.length, settings.width)).astype(np.float32)
        mask = np.arange(settings.length)[None] < rng.integers(1, settings.length + 1, (CLIPS, 1))
        text = TextStates(states, mask, np.ones(CLIPS, bool))
    return Conditions(np.arange(CLIPS, dtype=np.int32) % 7 + 1, text=text)


@functools.cache
def _sample(system, axes):
    """Two frames after one of context, and the part of the cache that one device holds."""
    config = CONFIGS[system]()
    mesh = make_mesh(axes, jax.devices()[: axes.data * axes.fsdp * axes.sequence * axes.tensor])
    sampler = VideoSampler(config, SHAPE, sampling_layout(config, SHAPE, mesh))
    params = jax.device_put(random_params(MaskedDiffusion(config, SHAPE).init, scale=0.2), replicated_sharding(mesh))
    weights = sampling_weights(config, params)
    start = np.float32(np.random.default_rng(0).normal(size=(CLIPS, 1, SHAPE.tokens, SHAPE.token_width)))
    arrays = start, _conditions(config), jax.random.split(jax.random.key(0), CLIPS)
    context, conditions, keys = jax.device_put(arrays, batch_sharding(mesh))
    state = sampler.start(weights, context, 4, conditions, keys)
    state, first = sampler.next_frame(weights, state)
    held = state.cache.k.sharding.shard_shape(state.cache.k.shape)
    return np.asarray(first), np.asarray(sampler.next_frame(weights, state)[1]), held


CASES = [('magi', axes) for axes in MESHES] + [('videomar', MESHES[2])]
CASES += [pytest.param('videomar', axes, marks=pytest.mark.slow) for axes in MESHES[:2]]


@pytest.mark.parametrize(('system', 'axes'), CASES, ids=str)
def test_clips_and_sites_shared_by_devices(system, axes):
    first, second, held = _sample(system, axes)
    one_first, one_second, whole = _sample(system, ONE)
    np.testing.assert_allclose(first, one_first, atol=1e-5)
    np.testing.assert_allclose(second, one_second, atol=1e-5)
    assert np.abs(one_first - one_second).max() > 0.1
    sites, width = whole[3:]
    if system == 'magi':
        sites = -(-SHAPE.tokens // axes.sequence)
    elif axes.sequence == 2:  # all sites of the heads of this device; four devices cannot divide two heads
        width //= 2
    assert held == (whole[0], whole[1] // (axes.data * axes.fsdp), whole[2], sites, width)
