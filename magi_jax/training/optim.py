"""AdamW with MAR's weight-decay mask, Muon, warm-up and decay schedules, and the EMA decay."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from magi_jax.config import OptimConfig

MOMENTUM = 0.95  # momentum of Muon (Jordan et al. 2024)
# Coefficients of Muon's polynomial for each iteration. Separate tuples make optax run a loop, which compiles faster.
ITERATIONS = 5 * ((3.4445, -4.7750, 2.0315),)
ADAM_RMS = 0.2  # RMS of a Muon update, so that AdamW's learning rates suit Muon as well (Liu et al. 2025)
UNDECAYED_LEAVES = ('bias', 'scale')
UNDECAYED_TREES = ('head',)  # the whole diffusion head (MAR)


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return a schedule: linear warm-up, a constant part, then decay.

    The decay is a cosine or a line to 0 over the last `decay_fraction` of `steps`.
    """
    warmup = optax.constant_schedule(config.learning_rate)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.schedule == 'constant':
        return warmup
    decay_steps = max(1, round(config.decay_fraction * steps))
    decay = optax.cosine_decay_schedule if config.schedule == 'cosine' else _linear_decay
    falling = decay(1.0, decay_steps)
    return lambda step: warmup(step) * falling(jnp.maximum(0, step - (steps - decay_steps)))


def _linear_decay(start: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(start, 0.0, steps)


def decay_mask(params: Any) -> Any:
    """Return True for leaves with weight decay: kernels and tables outside the head, not biases and norms."""

    def decays(path: tuple, _: jax.Array) -> bool:
        names = [entry.key for entry in path]
        return names[0] not in UNDECAYED_TREES and names[-1] not in UNDECAYED_LEAVES

    return jax.tree_util.tree_map_with_path(decays, params)


def matrix_axes(params: Any) -> Any:
    """Return the row and column axes that Muon orthogonalises for each parameter; None selects AdamW.

    Muon updates maps between hidden features. These are the kernels of the scanned blocks, [L, D, F] or [L, D, 3, F],
    and of the residual blocks in the diffusion head, [D, F]. Queries, keys and values are separate matrices. Embeddings
    and outputs use AdamW.
    """

    def axes(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != 'kernel':
            return None
        if 'blocks' in names:
            return MuonDimensionNumbers(1, leaf.ndim - 1)
        return MuonDimensionNumbers(0, 1) if names[-3].startswith('block_') else None

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Return global-norm clipping followed by AdamW or Muon, for a run of `steps` optimizer steps."""
    rate = learning_rate_schedule(config, steps)
    if config.name == 'muon':
        update = muon(
            rate, ns_coeffs=ITERATIONS, beta=MOMENTUM, eps=config.eps, weight_decay=config.weight_decay,
            adam_b1=config.b1, adam_b2=config.b2, muon_weight_dimension_numbers=matrix_axes, consistent_rms=ADAM_RMS,
        )  # fmt: skip
    else:
        update = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def ema_decay(config: OptimConfig, step: jax.Array) -> jax.Array:
    """Return the EMA decay at a step, float32. With warm-up it is (1+n)/(10+n) until it reaches `ema_decay`."""
    if not config.ema_warmup:
        return jnp.asarray(config.ema_decay, jnp.float32)
    return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
