"""Clips shared by eight devices are the clips of one, and no device holds the cache of the others' clips."""

import functools

import jax
import numpy as np
import pytest

from magi_jax.config import MagiConfig, MagiHeadConfig, MagiModelConfig, MagiSamplerConfig, MeshConfig, TrainConfig
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding
from magi_jax.sampling.video import VideoSampler, sampling_weights
from tests.random_params import random_params

CLIPS = 8
ONE = MeshConfig(data=1)
# Five sites do not divide by two or four: the last device's are padding in part.
MESHES = (
    MeshConfig(data=8),
    MeshConfig(data=1, sequence=4),
    MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
)
SHAPE = ClipShape(frames=3, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)


@functools.cache
def _sample(axes):
    """Two frames after one of context, and the part of the cache that one device holds."""
    model = MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=24, head=MagiHeadConfig(width=16, blocks=1))
    settings = MagiSamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2)
    config = MagiConfig(model=model, sampler=settings, train=TrainConfig(compute_dtype='float32'))
    mesh = make_mesh(axes, jax.devices()[: axes.data * axes.fsdp * axes.sequence * axes.tensor])
    sampler = VideoSampler(config, SHAPE, sampling_layout(config, SHAPE, mesh))
    params = jax.device_put(random_params(MaskedDiffusion(config, SHAPE).init, scale=0.2), replicated_sharding(mesh))
    weights = sampling_weights(config, params)
    start = np.float32(np.random.default_rng(0).normal(size=(CLIPS, 1, SHAPE.tokens, SHAPE.token_width)))
    arrays = start, np.arange(CLIPS, dtype=np.int32) % 7 + 1, jax.random.split(jax.random.key(0), CLIPS)
    context, interval, keys = jax.device_put(arrays, batch_sharding(mesh))
    state = sampler.start(weights, context, 4, Conditions(interval), keys)
    state, first = sampler.next_frame(weights, state)
    held = state.cache.k.sharding.shard_shape(state.cache.k.shape)
    return np.asarray(first), np.asarray(sampler.next_frame(weights, state)[1]), held


@pytest.mark.parametrize('axes', MESHES, ids=str)
def test_clips_and_sites_shared_by_devices(axes):
    first, second, held = _sample(axes)
    one_first, one_second, whole = _sample(ONE)
    np.testing.assert_allclose(first, one_first, atol=1e-5)
    np.testing.assert_allclose(second, one_second, atol=1e-5)
    sites = -(-SHAPE.tokens // axes.sequence)
    assert held == (*whole[:1], CLIPS // (axes.data * axes.fsdp), whole[2], sites, whole[4])
