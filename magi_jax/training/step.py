"""One optimizer step and one evaluation step for any objective."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from magi_jax.config import Config
from magi_jax.objectives.api import Objective
from magi_jax.parallel.layout import training_layout
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.training.optim import ema_decay
from magi_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Tokenizer | None, Batch], tuple[TrainState, Metrics]]
Gradient = Callable[[Any, Tokenizer | None, Batch, jax.Array], tuple[Any, Metrics]]
EvalStep = Callable[[Any, Tokenizer | None, Batch], Metrics]

TRAIN, EVAL = 0, 1  # folded into the key of a run


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> TrainStep:
    """Return the function (state, tokenizer, global batch) -> (next state, metrics).

    Its randomness depends only on (config.seed, step). Metrics are those of the objective, 'grad_norm' and 'bad_leaf'.
    'bad_leaf' is -1, or the index in `leaf_names(params)` of the first bad leaf. A leaf is bad if the loss or the
    squared norm of a gradient is not finite.
    """
    layout = training_layout(objective, config, mesh)
    loss = functools.partial(dataclasses.replace(objective, layout=layout).loss, train=True)
    gradient = functools.partial(_accumulate, jax.grad(loss, has_aux=True), config.optim.accumulate)

    def train_step(state: TrainState, tokenizer: Tokenizer | None, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), TRAIN), state.step)
        gradients, metrics = layout.differentiate(gradient)(state.params, tokenizer, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config.optim, state.step)
        ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, params)
        squares = jnp.stack([jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(gradients)])
        metrics |= {'grad_norm': jnp.sqrt(jnp.sum(squares)), 'bad_leaf': _first_bad_leaf(metrics['loss'], squares)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


def make_eval_step(objective: Objective, config: Config, mesh: Mesh) -> EvalStep:
    """Return the function (params, tokenizer, batch) -> metrics, without dropout.

    The random numbers of a clip are the same at every call.
    """
    layout = training_layout(objective, config, mesh)
    loss = layout.evaluate(functools.partial(dataclasses.replace(objective, layout=layout).loss, train=False))

    def eval_step(params: Any, tokenizer: Tokenizer | None, batch: Batch) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.seed), EVAL)
        return loss(params, tokenizer, batch, key)[1]

    return eval_step


def leaf_names(params: Any) -> list[str]:
    """Return the names that 'bad_leaf' indexes: the loss, then the path of every parameter."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return ['loss', *(jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in paths)]


def _accumulate(
    gradient: Gradient, micro_batches: int, params: Any, tokenizer: Tokenizer | None, batch: Batch, key: jax.Array
) -> tuple[Any, Metrics]:
    """Average gradients and metrics of one device over `micro_batches` equal parts of its batch, in sequence."""
    if micro_batches == 1:
        return gradient(params, tokenizer, batch, key)
    # Interleaved, so that the parts of the global batch are the same on any number of devices.
    parts = jax.tree.map(lambda x: einops.rearrange(x, '(b m) ... -> m b ...', m=micro_batches), batch)

    def add_part(total: tuple[Any, Metrics], part: Batch) -> tuple[tuple[Any, Metrics], None]:
        return jax.tree.map(jnp.add, total, gradient(params, tokenizer, part, key)), None

    metrics = jax.eval_shape(lambda: gradient(params, tokenizer, jax.tree.map(lambda x: x[0], parts), key))[1]
    zeros = jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
    total, _ = jax.lax.scan(add_part, zeros, parts)
    return jax.tree.map(lambda x: x / micro_batches, total)


def _first_bad_leaf(loss: jax.Array, squares: jax.Array) -> jax.Array:
    """Return the index of the first leaf that is not finite, else -1.

    The squared norms decide, because checking every element would read the gradients again.
    """
    bad = ~jnp.isfinite(jnp.concatenate([loss[None], squares]))
    return jnp.where(bad.any(), jnp.argmax(bad), -1)
