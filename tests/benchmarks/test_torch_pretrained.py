"""Shared weights in the PyTorch reference: the videos that JAX makes with them."""

import numpy as np
import pytest

pytest.importorskip('torch', reason='the torch extra is not installed')

import torch

from magi_jax.benchmarks.torch_pretrained import load_pretrained
from magi_jax.benchmarks.torch_sampling import Sampler
from magi_jax.pretrained.folder import save_pretrained
from tests.benchmarks import jax_side, torch_side
from tests.benchmarks.agreement import SAMPLED
from tests.benchmarks.jax_side import SAMPLES, VARIANTS


@pytest.mark.parametrize('name', SAMPLES)
def test_videos_from_shared_weights_are_those_of_jax(name, tmp_path):
    config, (context, frames) = VARIANTS[name], SAMPLES[name]
    facts = {'step': 1, 'versions': {}}
    save_pretrained(tmp_path / 'shared', config, jax_side.tokenizer(), jax_side.params(config), facts, 'a', 'mit')
    model = load_pretrained(tmp_path / 'shared')
    interval = torch_side.tensor(jax_side.batch()['interval'])
    tokens, draws = torch_side.tensor(jax_side.context_tokens(context)), torch_side.VideoDraws(config)
    made = torch.stack(list(Sampler(model).frames(tokens, frames, interval, draws)), dim=1).numpy()
    difference = np.abs(made - jax_side.sample(config, context, frames)).max()
    print(f'{name}: largest difference {difference:.1e}')
    assert made.std() > 1 and difference <= SAMPLED
