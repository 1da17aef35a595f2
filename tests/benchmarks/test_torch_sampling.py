"""Videos of the PyTorch reference are the JAX sampler's, from the same weights and noise."""

import numpy as np
import pytest

pytest.importorskip('torch', reason='the torch extra is not installed')

import torch

from magi_jax.benchmarks.torch_sampling import RandomDraws, Sampler
from magi_jax.config import ConfigError
from tests.benchmarks import jax_side, torch_side
from tests.benchmarks.agreement import SAMPLED
from tests.benchmarks.jax_side import BASE, CLIPS, SAMPLES, VARIANTS, variant


@pytest.mark.parametrize('name', SAMPLES)
def test_videos(name):
    """Four frames from nothing; a window that slides, with noisy context; stretched positions and too much context."""
    ours, theirs = (side.sample(VARIANTS[name], *SAMPLES[name]) for side in (jax_side, torch_side))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAMPLED)
    assert theirs.std() > 1 and (np.abs(theirs) < 2.49).mean() > 0.6  # not all at the clip, where all would agree


def test_own_draws():
    """From torch's generator: the same seed, the same video, and another one from another seed."""
    model, interval = torch_side.model(BASE), torch.tensor([1, 2, 7])
    context, videos = torch_side.tensor(jax_side.context_tokens(1)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        frames = Sampler(model).frames(context, 6, interval, RandomDraws(model, CLIPS, context.device))
        videos.append(torch.stack(list(frames), dim=1))
    assert videos[0].shape == (CLIPS, 5, model.shape.tokens, model.shape.token_width)
    assert (videos[0] == videos[1]).all() and (videos[0] - videos[2]).abs().mean() > 0.1


def test_bfloat16_trunk():
    """A sampler's linear layers are stored in bfloat16; the model it was made from is left alone."""
    config = variant(train={'compute_dtype': 'bfloat16'})
    half, exact = (torch_side.sample(c, 1, 2) for c in (config, BASE))
    difference = np.abs(half - exact)
    assert 1e-4 < difference.mean() < 0.1
    model = torch_side.model(config)
    trunk = Sampler(model).model.trunk
    assert trunk.blocks[0].temporal_mlp.up.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {trunk.output_norm.weight.dtype} == {torch.float32}


def test_impossible_requests_are_named():
    with pytest.raises(ConfigError, match='5 context frames are more than the 4 frames'):
        torch_side.sample(BASE, 5, 4)
    with pytest.raises(ConfigError, match=r'sampler.keep_frames = 4 must lie in 1..3'):
        torch_side.sample(variant(sampler={'keep_frames': 4}), 1, 5)


@pytest.mark.slow
def test_compiled():
    config = variant(model={'blocks': 1}, head={'blocks': 1})
    compiled, eager = (torch_side.sample(config, 1, 5, compiled) for compiled in (True, False))
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=SAMPLED)
