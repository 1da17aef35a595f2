"""Training in the latents of tokenizers that see whole clips: alike on any mesh, contexts encoded alone where asked."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from magi_jax.config import (
    DataConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MeshConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.objectives.api import make_objective
from magi_jax.parallel.mesh import make_mesh, put_batch
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.pixels import to_float
from magi_jax.training.step import make_eval_step
from tests.random_params import random_params
from tests.tokenizers import toy

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
# Of nine frames: three latent frames, so that two devices get one padding frame.
KINDS = {
    'toy': (toy.CONFIG, 16, 5),
    'cosmos_cv4x8x8': (TokenizerConfig(kind='cosmos_cv4x8x8', channels=4, width=2), 16, 0),
    'omni': (TokenizerConfig(kind='omni', channels=4, width=32), 64, 5),
}


def _config(kind):
    tokenizer, side, context = KINDS[kind]
    head = MagiHeadConfig(width=16, blocks=1, repeats=1)
    return MagiConfig(
        data=DataConfig(height=side, width=side, batch_size=2, max_interval=5, frames=9, context_frames=context),
        tokenizer=tokenizer,
        model=MagiModelConfig(width=16, blocks=1, heads=2, mlp_width=24, patch=side // 16, head=head),
        train=TrainConfig(compute_dtype='float32'),
    )


def _tokenizer(kind, monkeypatch):
    if kind == 'toy':
        return toy.install(monkeypatch)
    config, side, _ = KINDS[kind]
    shapes = jax.eval_shape(lambda: create_tokenizer(config, jax.random.key(0), side, side))
    params = random_params(lambda key: create_tokenizer(config, key, side, side).params)
    return shapes.replace(params=params, latent_mean=np.zeros(4), latent_std=np.ones(4))


def _batch(config):
    rng, data = np.random.default_rng(0), config.data
    video = rng.integers(0, 256, (2, data.frames, data.height, data.width, 3), np.uint8)
    return {'video': video, 'interval': np.asarray([1, 4], np.int32), 'example': np.asarray([3, 911], np.int32)}


def _loss(config, tokenizer, batch, **axes):
    objective = make_objective(config, tokenizer)
    mesh = make_mesh(MeshConfig(**{'data': 1, **axes}), jax.devices()[: math.prod(axes.values())])
    step = jax.jit(make_eval_step(objective, config, mesh), compiler_options=QUICK)
    return jax.device_get(step(random_params(objective.init), tokenizer, put_batch(mesh, batch)))


@pytest.mark.parametrize(
    'kind', [kind if kind == 'toy' else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_devices_that_share_a_clip_see_what_one_sees(kind, monkeypatch):
    config, tokenizer = _config(kind), _tokenizer(kind, monkeypatch)
    one = _loss(config, tokenizer, _batch(config))
    shared = _loss(config, tokenizer, _batch(config), data=2, sequence=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, shared)


@pytest.mark.parametrize('context', [pytest.param(0, marks=pytest.mark.slow), 5])
def test_loss_of_moments_is_that_of_their_video(context, monkeypatch):
    """The same draws, of means and variances that were computed before, with the context encoded alone."""
    config, tokenizer = _config('toy'), _tokenizer('toy', monkeypatch)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, context_frames=context))
    video = _batch(config)
    mean, log_variance = tokenizer.moments(to_float(video.pop('video')), context)
    latents = video | {'mean': np.asarray(mean), 'log_variance': np.asarray(log_variance)}
    of_video = _loss(config, tokenizer, _batch(config))
    of_moments = _loss(config, tokenizer, latents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), of_video, of_moments)
    of_means = _loss(config, tokenizer, {name: value for name, value in latents.items() if name != 'log_variance'})
    assert abs(of_means['loss'] - of_video['loss']) > 1e-3
