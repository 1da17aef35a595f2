"""AdamW as MAR has it, and Muon: what decays, how fast it learns when, and how gradients are clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from magi_jax.config import MagiConfig, MagiHeadConfig, MagiModelConfig, OptimConfig, TokenizerConfig
from magi_jax.objectives.api import make_objective
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.training.optim import decay_mask, ema_decay, learning_rate_schedule, make_optimizer
from tests.random_params import random_params


def _leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def test_weight_decay_spares_the_head_biases_and_norms():
    config = MagiConfig(tokenizer=TokenizerConfig(kind='identity', channels=192))
    tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), 64, 64)
    shapes = nn.unbox(jax.eval_shape(make_objective(config, tokenizer).init, jax.random.key(0)))
    decays = _leaves(decay_mask(shapes))
    spared = {name for name, decayed in decays.items() if not decayed}
    assert spared == {name for name in decays if name.startswith('head/') or name.endswith(('/bias', '/scale'))}
    kept = {name.split('/')[-1] for name in decays.keys() - spared}
    assert {'kernel', 'mask_token', 'interval_table'} <= kept and all(
        n == 'kernel' or n.endswith(('table', 'token')) for n in kept
    )
    sizes = {name: leaf.size for name, leaf in _leaves(shapes).items()}
    assert sum(sizes[name] for name in decays.keys() - spared) > 0.9 * sum(
        sizes[n] for n in sizes if n.startswith('trunk/')
    )


GOLDEN = [
    ({}, {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
    ({'schedule': 'linear', 'decay_fraction': 0.4}, {0: 0.0, 10: 1.0, 60: 1.0, 70: 0.75, 80: 0.5, 100: 0.0}),
    ({'schedule': 'cosine', 'decay_fraction': 0.5}, {5: 0.5, 50: 1.0, 75: 0.5, 100: 0.0}),
    ({'schedule': 'cosine'}, {5: 0.5 * (1 + np.cos(0.05 * np.pi)) / 2, 50: 0.5, 100: 0.0}),
    ({'schedule': 'linear', 'warmup_steps': 0}, {1: 0.99, 50: 0.5}),
]


@pytest.mark.parametrize(('fields', 'points'), GOLDEN)
def test_learning_rate(fields, points):
    config = OptimConfig(**{'learning_rate': 3e-3, 'warmup_steps': 10, **fields})
    schedule = learning_rate_schedule(config, 100)
    for step, fraction in points.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(3e-3 * fraction, abs=1e-9), step


def test_decay_of_the_average():
    """(1 + n) / (10 + n) while that is smaller."""
    plain, warm = OptimConfig(ema_decay=0.99), OptimConfig(ema_decay=0.99, ema_warmup=True)
    assert float(ema_decay(plain, jnp.int32(0))) == pytest.approx(0.99)
    for step, decay in {0: 0.1, 8: 0.5, 890: 0.99, 10_000: 0.99}.items():
        assert float(ema_decay(warm, jnp.int32(step))) == pytest.approx(decay)


MATRICES = {
    'head/block_0/modulation', 'head/block_0/up', 'head/block_0/down', 'trunk/trunk/blocks/spatial_attention/qkv',
    'trunk/trunk/blocks/spatial_attention/out', 'trunk/trunk/blocks/spatial_mlp/up',
    'trunk/trunk/blocks/spatial_mlp/down', 'trunk/trunk/blocks/temporal_attention/qkv',
    'trunk/trunk/blocks/temporal_attention/out', 'trunk/trunk/blocks/temporal_mlp/up',
    'trunk/trunk/blocks/temporal_mlp/down',
}  # fmt: skip


def test_muon_takes_all_singular_values_alike_one_matrix_at_a_time():
    """The first step of the maps between hidden features is near orthogonal and 0.2 in size; the rest are AdamW's."""
    head = MagiHeadConfig(width=12, blocks=1)
    model = MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=24, head=head)
    config = MagiConfig(model=model, tokenizer=TokenizerConfig(kind='identity', channels=192))
    tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), 64, 64)
    gradients = random_params(make_objective(config, tokenizer).init)
    optim = OptimConfig(name='muon', learning_rate=0.5, warmup_steps=0, weight_decay=0.0, clip_norm=1e9, eps=1e-12)
    optimizer, zeros = make_optimizer(optim, 10), jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(zeros), zeros)
    found, gradients = set(), _leaves(gradients)
    for name, update in _leaves(updates).items():
        if name.removesuffix('/kernel') not in MATRICES:
            np.testing.assert_allclose(update, -np.abs(update).max() * np.sign(gradients[name]), rtol=1e-3)
            continue
        found.add(name.removesuffix('/kernel'))
        update = np.moveaxis(update, 2, 1) if update.ndim == 4 else update  # [L, 3, D, F]
        values = np.linalg.svd(update, compute_uv=False) / (0.5 * 0.2 * max(update.shape[-2:]) ** 0.5)
        assert values.min() > 0.5 and values.max() < 1.4, name
    assert found == MATRICES


def test_steps_are_those_of_adamw_on_clipped_gradients():
    """Against AdamW written out, over gradients of which the first is ten times the bound and the others below it."""
    config = OptimConfig(learning_rate=0.1, warmup_steps=0, b1=0.9, b2=0.95, eps=1e-3, weight_decay=0.2, clip_norm=1.0)
    gradients = [np.array([6.0, -8.0]), np.array([0.3, 0.1]), np.array([-0.2, 0.4])]
    optimizer, params = make_optimizer(config, 10), {'trunk': {'kernel': jnp.array([1.0, -2.0])}}
    state, w, m, v = optimizer.init(params), np.array([1.0, -2.0]), 0.0, 0.0
    for count, gradient in enumerate(gradients):
        tree = {'trunk': {'kernel': jnp.asarray(gradient, jnp.float32)}}
        updates, state = optimizer.update(tree, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        step = m / (1 - 0.9 ** (count + 1)) / (np.sqrt(v / (1 - 0.95 ** (count + 1))) + 1e-3) + 0.2 * w
        w = w - 0.1 * step
        np.testing.assert_allclose(params['trunk']['kernel'], w, rtol=1e-5)
