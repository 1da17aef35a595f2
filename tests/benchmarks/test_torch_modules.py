"""Each module of the PyTorch reference on its own against its JAX counterpart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('torch', reason='the torch extra is not installed')

import torch

from magi_jax.benchmarks import torch_head, torch_trunk
from magi_jax.benchmarks.torch_diffusion import Diffusion
from magi_jax.diffusion import gaussian
from magi_jax.diffusion.schedule import full_process, respaced_process
from magi_jax.layers import positions
from magi_jax.masking import frames
from magi_jax.models.conditions import Conditions
from magi_jax.models.diffusion_head import timestep_embedding
from tests.benchmarks import jax_side, torch_side
from tests.benchmarks.agreement import EXACT, relative_error
from tests.benchmarks.jax_side import CLIPS, VARIANTS
from tests.benchmarks.torch_side import tensor

RNG = np.random.default_rng(0)


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('name', VARIANTS)
def test_trunk(name):
    config = VARIANTS[name]
    shape = jax_side.objective(config).shape
    clips = (CLIPS, shape.frames, shape.tokens)
    observed, masked, mask = (
        _normal(*clips, shape.token_width),
        _normal(*clips, shape.token_width),
        RNG.random(clips) < 0.7,
    )
    interval, level = RNG.integers(1, shape.intervals + 1, CLIPS), RNG.integers(0, shape.noise_levels, clips[:2])
    given = observed if config.model.teacher_forcing == 'complete' else None
    z = jax_side.apply(config, 'trunk', given, masked, mask, Conditions(interval, level))
    with torch.no_grad():
        expected = torch_side.model(config).trunk(*map(tensor, (observed, masked, mask, interval, level)))
    assert expected.shape == (*clips, config.model.width)
    assert relative_error(z, expected) < EXACT


@pytest.mark.parametrize('name', ['base', 'other CTF'])
def test_head(name):
    config = VARIANTS[name]
    width = jax_side.objective(config).shape.token_width
    x, t, z = _normal(CLIPS, 5, width), RNG.integers(0, 1000, (CLIPS, 5)), _normal(CLIPS, 1, config.model.width)
    with torch.no_grad():
        expected = torch_side.model(config).head(*map(tensor, (x, t, z)))
    assert relative_error(jax_side.apply(config, 'head', x, t, z), expected) < EXACT


@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
def test_diffusion_loss(prediction):
    """At all depths of the process, its first and last step among them, with tokens in the tails of the likelihood."""
    i = np.concatenate([[0, 0, 0, 0, 1, 2, 998, 999], RNG.integers(0, 1000, 56)])
    clean, noise, output = 1.5 * _normal(64, 6), _normal(64, 6), _normal(64, 12)

    def ours(output):
        mse, vb = gaussian.diffusion_loss(full_process(1000), prediction, output, clean, noise, i)
        return mse.mean() + vb.mean(), (mse, vb)

    gradient, (mse, vb) = jax.jit(jax.grad(ours, has_aux=True))(output)
    output = tensor(output).requires_grad_()
    expected_mse, expected_vb = Diffusion.full(prediction, 1000).loss(output, tensor(clean), tensor(noise), tensor(i))
    (expected_mse.mean() + expected_vb.mean()).backward()
    assert relative_error(mse, expected_mse.detach()) < EXACT and relative_error(vb, expected_vb.detach()) < EXACT
    assert relative_error(gradient, output.grad) < EXACT


@pytest.mark.parametrize('prediction', ['noise', 'clean', 'velocity'])
@pytest.mark.parametrize('x0_clip', [2.0, np.inf])
def test_reverse_step(prediction, x0_clip):
    i = np.arange(7).repeat(3)
    x, output = _normal(21, 6), 2 * _normal(21, 12)
    process = respaced_process(1000, 7, 800)
    step = jax.jit(gaussian.reverse_step, static_argnums=(1, 5))
    mean, log_variance = step(process, prediction, output, x, i, x0_clip)
    theirs = Diffusion.respaced(prediction, 1000, 7, 800)
    np.testing.assert_array_equal(theirs.timestep, process.timestep)
    expected = theirs.reverse_step(tensor(output), tensor(x), tensor(i), x0_clip)
    assert relative_error(mean, expected[0]) < EXACT and relative_error(log_variance, expected[1]) < EXACT


def test_tables_and_masks():
    np.testing.assert_array_equal(torch_trunk.sincos_1d(7, 12), positions.sincos_1d(7, 12))
    np.testing.assert_array_equal(torch_trunk.sincos_2d(3, 5, 12), positions.sincos_2d(3, 5, 12))
    table, where = _normal(5, 2, 3), np.float32([0, 0.25, 1, 3.5, 4])
    read = positions.read_table(jnp.asarray(table), where)
    np.testing.assert_allclose(torch_trunk.read_table(tensor(table), tensor(where)), read, atol=1e-6)
    t = np.asarray([0, 1, 500, 999])
    np.testing.assert_allclose(torch_head.timestep_embedding(tensor(t)), timestep_embedding(t), atol=1e-4)
    np.testing.assert_array_equal(torch_trunk.causal(5), frames.causal(5))
    rows = np.delete(np.arange(10), 4)  # all but the last observed frame
    whole = frames.complete_teacher_forcing(5)
    np.testing.assert_array_equal(torch_trunk.complete_teacher_forcing(5), whole[np.ix_(rows, rows)])
    assert not whole[5:, 4].any()  # which no masked frame sees
