"""The optimizer step on a toy objective: micro-batches, the moving average, draws of a step, the leaf that went bad."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magi_jax.config import MagiConfig, MeshConfig, OptimConfig
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.state import TrainState
from magi_jax.training.step import leaf_names, make_eval_step, make_train_step

ROWS, WIDTH = 6, 3
MESH = make_mesh(MeshConfig(data=1), jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Line:
    """A regression with noise on its targets, drawn from the step's key and the example."""

    layout: Layout = SINGLE_DEVICE
    trunk: None = None

    def init(self, key):
        return {'root': jnp.float32(0), 'w': jnp.ones(WIDTH)}

    def loss(self, params, tokenizer, batch, key, train):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(batch['example'])
        params = self.layout.gather(params)
        error = batch['x'] @ params['w'] + jnp.sqrt(params['root']) - batch['y'] - train * noise
        loss, noise = (self.layout.mean(jnp.sum(x), jnp.float32(x.size)) for x in (jnp.square(error), noise))
        return loss, {'loss': loss, 'noise': noise}


def _batch():
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.normal(size=(ROWS, WIDTH))), np.float32(rng.normal(size=ROWS))
    return {'x': jnp.asarray(x), 'y': jnp.asarray(y), 'example': jnp.arange(ROWS)}


def _state(optimizer, root=1.0):
    params = {'root': jnp.float32(root), 'w': jnp.ones(WIDTH)}
    return TrainState(jnp.int32(0), params, optimizer.init(params), params)


def _steps(count=1, optimizer=None, batch=None, root=1.0, mesh=None, **optim):
    """States of `count` steps, with the optimizer that adds the gradient unless told otherwise."""
    optimizer = optimizer or optax.identity()
    step = jax.jit(make_train_step(Line(), optimizer, MagiConfig(optim=OptimConfig(**optim)), mesh or MESH))
    states, metrics = [_state(optimizer, root)], []
    for _ in range(count):
        state, values = step(states[-1], None, batch or _batch())
        states.append(state)
        metrics.append(values)
    return states, metrics


@pytest.mark.parametrize('parts', [2, 3, 6])
def test_micro_batches_are_the_whole_batch(parts):
    """Exact where each part's loss is a mean over as many things; MAGI divides by the masked tokens of a part, whose
    number varies by a few per cent, so there parts weigh their tokens slightly unequally."""
    (_, whole), (metrics,) = _steps()
    (_, divided), (parted,) = _steps(accumulate=parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), divided.params, whole.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parted, metrics)
    assert int(divided.step) == 1 and float(metrics['grad_norm']) > 0.1


def test_micro_batches_of_two_devices_are_the_whole_batch():
    (_, whole), _ = _steps()
    (_, divided), _ = _steps(accumulate=3, mesh=make_mesh(MeshConfig(data=2), jax.devices()[:2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), divided.params, whole.params)


def test_average_starts_at_the_parameters_and_follows_them():
    states, _ = _steps(3, optax.sgd(0.1), ema_decay=0.75)
    average = states[0].params['w']
    np.testing.assert_array_equal(states[0].ema['w'], average)
    for state in states[1:]:
        average = 0.75 * average + 0.25 * state.params['w']
        np.testing.assert_allclose(state.ema['w'], average, rtol=1e-6)


def test_draws_belong_to_the_step_and_the_seed():
    states, metrics = _steps(2)
    assert float(metrics[0]['noise']) != float(metrics[1]['noise'])
    step = jax.jit(make_train_step(Line(), optax.identity(), MagiConfig(), MESH))
    again = step(states[1], None, _batch())[1]  # a resumed run
    assert float(again['noise']) == float(metrics[1]['noise'])
    other = jax.jit(make_train_step(Line(), optax.identity(), MagiConfig(seed=1), MESH))(states[1], None, _batch())[1]
    assert float(other['noise']) != float(again['noise'])
    evaluate = jax.jit(make_eval_step(Line(), MagiConfig(), MESH))
    values = [evaluate(state.params, None, _batch())['noise'] for state in states[:2]]
    assert float(values[0]) == float(values[1]) and float(values[0]) not in [float(m['noise']) for m in metrics]


@pytest.mark.parametrize(('root', 'spoil', 'name'), [(1.0, 0.0, None), (0.0, 0.0, 'root'), (1.0, np.inf, 'loss')])
def test_the_first_bad_leaf_is_named(root, spoil, name):
    """The slope of sqrt at 0 is infinite while the loss is not."""
    batch = _batch()
    batch['y'] = batch['y'] + spoil
    states, (metrics,) = _steps(root=root, batch=batch)
    assert leaf_names(states[0].params) == ['loss', 'root', 'w']
    assert int(metrics['bad_leaf']) == (-1 if name is None else leaf_names(states[0].params).index(name))
