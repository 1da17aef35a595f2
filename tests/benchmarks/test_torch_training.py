"""Loss, gradients and optimizer steps of the PyTorch reference are the JAX model's, from the same weights and draws."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

pytest.importorskip('torch', reason='the torch extra is not installed')

import torch

from magi_jax.benchmarks.torch_model import Magi
from magi_jax.benchmarks.torch_training import Trainer, training_draws
from magi_jax.benchmarks.weights import from_state_dict
from magi_jax.training.optim import decay_mask, ema_decay, learning_rate_schedule
from tests.benchmarks import jax_side, torch_side
from tests.benchmarks.agreement import EXACT, HALF, assert_leaves_agree, assert_runs_agree, joined, relative_error
from tests.benchmarks.jax_side import BASE, VARIANTS, variant


@pytest.mark.parametrize('name', VARIANTS)
def test_loss_and_every_gradient(name):
    metrics, gradients = jax_side.loss_and_gradients(VARIANTS[name])
    expected_metrics, expected = torch_side.loss_and_gradients(VARIANTS[name])
    assert_leaves_agree(metrics, expected_metrics, EXACT)
    assert_leaves_agree(gradients, expected, EXACT)


def test_bfloat16():
    """The gradient as a whole: a leaf's own error in bfloat16 is up to 1.5 % on either side, against float32."""
    config = variant(train={'compute_dtype': 'bfloat16'})
    metrics, gradients = jax_side.loss_and_gradients(config)
    expected_metrics, expected = torch_side.loss_and_gradients(config)
    assert_leaves_agree(metrics, expected_metrics, HALF)
    assert relative_error(joined(gradients), joined(expected)) < HALF
    exact = joined(torch_side.loss_and_gradients(BASE)[1])
    assert all(
        relative_error(joined(tree), exact) > 1e-3 for tree in (gradients, expected)
    )  # both really computed in it


def test_twenty_optimizer_steps():
    ours, theirs = jax_side.train(BASE), torch_side.train(BASE)
    assert_runs_agree(ours, theirs, jax_side.params(BASE))


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('warmup', [0, 7])
def test_schedules_and_averages_rates(schedule, warmup):
    """The learning rate that AdamW holds at a step; the average's rate, read off a parameter that jumps by 1."""
    config = variant(optim={'schedule': schedule, 'warmup_steps': warmup, 'decay_fraction': 0.4})
    trainer = Trainer(Magi(config, jax_side.objective(config).shape))
    expected = learning_rate_schedule(config.optim, config.train.steps)
    token, average = trainer.model.trunk.mask_token, trainer.average.trunk.mask_token
    for step in range(config.train.steps + 3):
        rates = [group['lr'] for group in trainer.optimizer.param_groups]
        np.testing.assert_allclose(rates, float(expected(step)), rtol=1e-5, atol=1e-9)
        before = average.detach().clone()
        token.data.copy_(before + 1)
        trainer._average()
        np.testing.assert_allclose(average - before, 1 - float(ema_decay(config.optim, step)), rtol=1e-5)
        trainer.optimizer.step()
        trainer.schedule.step()
        trainer.steps_taken += 1


def test_weight_decay_spares_the_same_parameters():
    for config in VARIANTS.values():
        model = Magi(config, jax_side.objective(config).shape)
        spared = {id(p) for p in Trainer(model).optimizer.param_groups[1]['params']}
        marks = {name: torch.full(p.shape, float(id(p) not in spared)) for name, p in model.named_parameters()}
        marks = from_state_dict(marks, jax_side.params(config))
        expected = jax.tree.map(lambda mark, leaf: np.full(leaf.shape, float(mark)), decay_mask(marks), marks)
        jax.tree.map(np.testing.assert_array_equal, marks, expected)


def test_own_draws_follow_the_same_laws():
    """Per clip, per frame and per batch; laws are the JAX model's, whose tests hold them against MAR's."""
    for name, per_clip, per_frame in [('base', False, False), ('other CTF', True, True), ('MTF', False, False)]:
        config = VARIANTS[name]
        shape = dataclasses.replace(jax_side.objective(config).shape, rows=10)
        torch.manual_seed(0)
        draws = training_draws(config, shape, 500, torch.device('cpu'))
        hidden = draws.mask.sum(-1)
        ratio = config.masking.ratio_min, config.masking.ratio_max
        assert hidden.min() >= np.floor(shape.tokens * ratio[0]) and hidden.max() <= np.ceil(shape.tokens * ratio[1])
        assert len(hidden.unique()) > (0 if config.masking.draw_per == 'batch' else 10)
        assert (draws.mask == draws.mask[:, :1]).all() == per_clip
        np.testing.assert_allclose(draws.mask.float().mean((0, 1)), hidden.float().mean() / shape.tokens, atol=0.07)
        assert (draws.level != draws.level[:, :1]).any() == per_frame
        assert set(draws.level.unique().tolist()) == set(range(shape.noise_levels))
        assert draws.timestep.shape == (500, 2, shape.frames, shape.tokens)
        assert draws.timestep.min() == 0 and draws.timestep.max() == 999
        for noise in (draws.noise, draws.diffusion_noise):
            assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_a_model_of_its_own_learns():
    """From PyTorch's own first weights and draws: a head that outputs zeros, and a loss that falls from there."""
    torch.manual_seed(0)
    config = variant(model={'dropout': 0.1}, optim={'schedule': 'constant', 'accumulate': 1})
    trainer = Trainer(Magi(config, jax_side.objective(config).shape))
    tokens, interval, _ = torch_side.step_arguments(config)
    losses = []
    for _ in range(60):
        draws = training_draws(config, trainer.model.shape, len(tokens), tokens.device)
        losses.append(float(trainer.step(tokens, interval, draws)['mse']))
    assert losses[0] == pytest.approx(1.0, abs=0.15) and np.mean(losses[-10:]) < 0.9


def test_first_weights_have_the_same_spread():
    config = VARIANTS['other CTF']
    torch.manual_seed(0)
    state = Magi(config, jax_side.objective(config).shape).state_dict()
    ours = jax.jit(jax_side.objective(config).init, compiler_options=jax_side.QUICK)(jax.random.key(0))
    expected = jax.tree.map(lambda leaf: np.std(leaf), jax.device_get(nn.unbox(ours)))
    made = from_state_dict(state, nn.unbox(ours))
    for spread, leaf in zip(jax.tree.leaves(expected), jax.tree.leaves(made), strict=True):
        np.testing.assert_allclose(np.std(leaf), spread, rtol=0.5 if leaf.size < 50 else 0.2)


@pytest.mark.slow
def test_compiled():
    config = variant(model={'blocks': 1}, head={'blocks': 1})
    compiled, eager = (torch_side.loss_and_gradients(config, compiled) for compiled in (True, False))
    assert_leaves_agree(compiled, eager, EXACT)
