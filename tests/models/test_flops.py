"""The analytic counts at the paper's size: 20 blocks of width 1280, 16 frames of 256 tokens of 16 values."""

import dataclasses

import pytest

from magi_jax.config import MagiConfig, MagiModelConfig, MagiSamplerConfig
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.flops import frame_flops, head_flops, train_flops

PAPER = ClipShape(frames=16, rows=16, columns=16, token_width=16, intervals=25, noise_levels=6)
T = 1e12
TEMPORAL_LAYER = 8 * 1280**2 + 4 * 32 * 1280 + 4 * 1280 * 5120  # of one token, forward


def _clip(frames=16, side=16, token_width=16, **model):
    shape = dataclasses.replace(PAPER, frames=frames, rows=side, columns=side, token_width=token_width)
    flops = train_flops(MagiConfig(model=MagiModelConfig(**model)), shape)
    return flops['spatial'] + flops['temporal'], flops['head']


@pytest.mark.parametrize(
    ('sizes', 'trunk', 'head'),
    [
        ({}, 3 * 13.13, 3 * 0.67),
        ({'teacher_forcing': 'masked'}, 3 * 6.56, 3 * 0.67),
        ({'side': 8}, 3 * 3.24, 3 * 0.17),
        ({'frames': 5, 'token_width': 32}, 3 * 4.10, 3 * 0.21),
        ({'frames': 3, 'token_width': 64}, 3 * 2.46, 3 * 0.13),
    ],
    ids=str,
)
def test_a_training_clip(sizes, trunk, head):
    counted = _clip(**sizes)
    assert counted[0] == pytest.approx(trunk * T, rel=3e-3) and counted[1] == pytest.approx(head * T, rel=4e-2)
    assert _clip()[0] + _clip()[1] == pytest.approx(41.4 * T, rel=1e-3)


def test_a_sampled_frame():
    """64 mask passes and one to commit against 16 cached frames, 100 denoising steps of each token."""
    config = MagiConfig(sampler=MagiSamplerConfig(mask_steps=64, denoise_steps=100))
    flops = frame_flops(config, PAPER, slots=16)
    trunk = flops['spatial'] + flops['temporal']
    assert trunk / 65 == pytest.approx(0.410 * T, rel=1e-3)
    assert flops['head'] == pytest.approx(1.05 * T, rel=2e-3)
    assert trunk + flops['head'] == pytest.approx(27.7 * T, rel=1e-3)


def test_a_guided_frame():
    """Each mask pass once more without the 16 cached frames, and the head twice."""
    configs = (MagiConfig(sampler=MagiSamplerConfig(guidance=g)) for g in (1.0, 2.0))
    plain, guided = (frame_flops(config, PAPER, slots=16) for config in configs)
    assert guided['head'] == 2 * plain['head']
    assert guided['spatial'] / plain['spatial'] == pytest.approx(129 / 65)
    assert 2 * plain['temporal'] - guided['temporal'] > 64 * 20 * 256 * 16 * 4 * 1280


def test_the_head_on_one_token():
    assert head_flops(MagiModelConfig(), 16) == pytest.approx(40.99e6, rel=1e-4)


@pytest.mark.parametrize(
    ('option', 'component', 'difference'),
    [
        ({'mlp_layers': 'temporal'}, 'spatial', -3 * 8192 * 20 * 4 * 1280 * 5120),
        ({'noise_embedding': 'add'}, 'embedding', -3 * 8192 * 4 * 1280 * 1280),
        ({'noise_embedding': 'concat_token'}, 'temporal', 3 * 32 * 20 * TEMPORAL_LAYER),
        ({'blocks': 21}, 'temporal', 3 * 8192 * TEMPORAL_LAYER),
    ],
    ids=str,
)
def test_what_each_option_costs(option, component, difference):
    default, changed = (
        train_flops(MagiConfig(model=MagiModelConfig(**fields)), PAPER)[component] for fields in ({}, option)
    )
    assert changed - default == difference
