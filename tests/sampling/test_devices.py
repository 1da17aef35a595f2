"""Clips shared by eight devices are the clips of one, and no device holds the cache of the others' clips."""

import jax
import numpy as np
import pytest

from magi_jax.config import Config, HeadConfig, MeshConfig, ModelConfig, SamplerConfig, TrainConfig
from magi_jax.models.magi import ClipShape
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from magi_jax.sampling.video import VideoSampler
from tests.random_params import random_params

CLIPS = 8
SHAPE = ClipShape(frames=3, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)


@pytest.mark.parametrize('context', [0, 1])
def test_clips_shared_by_devices(context):
    model = ModelConfig(width=16, blocks=2, heads=2, mlp_width=24, head=HeadConfig(width=16, blocks=1))
    settings = SamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2)
    sampler = VideoSampler(Config(model=model, sampler=settings, train=TrainConfig(compute_dtype='float32')), SHAPE)
    params = random_params(MaskedDiffusion(sampler.config, SHAPE).init, scale=0.2)
    start = np.float32(np.random.default_rng(0).normal(size=(CLIPS, context, SHAPE.tokens, SHAPE.token_width)))
    arrays = start, np.arange(CLIPS, dtype=np.int32) % 7 + 1, jax.random.split(jax.random.key(0), CLIPS)
    made = []
    for count in (1, 8):
        mesh = make_mesh(MeshConfig(), jax.devices()[:count])
        here, (clips, interval, keys) = (
            jax.device_put(params, replicated(mesh)),
            jax.device_put(arrays, batch_sharding(mesh)),
        )
        state = sampler.start(here, clips, 4, interval, keys)
        state, first = sampler.next_frame(here, state)
        shard = state.cache.k.sharding.shard_shape(state.cache.k.shape)
        assert np.prod(shard) == state.cache.k.size // count
        made.append([np.asarray(first), np.asarray(sampler.next_frame(here, state)[1])])
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)
