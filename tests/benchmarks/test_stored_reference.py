"""The JAX model against results of the PyTorch reference that were stored: this comparison needs no torch."""

import pathlib

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.benchmarks import jax_side
from tests.benchmarks.agreement import EXACT, SAMPLED, assert_leaves_agree, assert_runs_agree, joined
from tests.benchmarks.jax_side import BASE, SAMPLES, VARIANTS

PATH = pathlib.Path(__file__).parents[1] / 'fixtures/torch_reference.npz'


@pytest.fixture(scope='module')
def stored():
    with np.load(PATH) as file:
        return unflatten_dict(dict(file), sep='/')


@pytest.mark.parametrize('name', ['other CTF', 'MTF'])  # of 'base', the twenty steps tell
def test_loss_and_every_gradient(stored, name):
    expected = stored[name]
    weights = np.abs(joined(jax_side.params(VARIANTS[name]))).sum(dtype=np.float64)
    np.testing.assert_allclose(weights, expected['weights'], rtol=1e-5, err_msg='made from other weights: make it anew')
    metrics, gradients = jax_side.loss_and_gradients(VARIANTS[name])
    assert_leaves_agree(metrics, expected['metrics'], EXACT)
    assert_leaves_agree(gradients, expected['gradients'], EXACT)


def test_videos(stored):
    """Of a window that slides, with noisy context."""
    video = jax_side.sample(VARIANTS['other CTF'], *SAMPLES['other CTF'])
    np.testing.assert_allclose(video, stored['other CTF']['video'], rtol=0, atol=SAMPLED)


def test_twenty_optimizer_steps(stored):
    params, _, history = jax_side.train(BASE)
    expected = stored['training']
    expected_history = [
        {name: values[step] for name, values in expected['metrics'].items()} for step in range(jax_side.STEPS)
    ]
    assert_runs_agree((params, history), (expected['params'], expected_history), jax_side.params(BASE))


def test_it_stays_small():
    assert PATH.stat().st_size < 300_000
