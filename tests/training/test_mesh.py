"""Three steps on any mesh, dropout included, are the three steps on one device; the state is born divided."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from magi_jax.config import (
    ConfigError,
    DataConfig,
    HeadConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MeshConfig,
    OptimConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VideomarConfig,
    VideomarModelConfig,
)
from magi_jax.objectives.api import make_objective
from magi_jax.parallel.mesh import check_batch, make_mesh, put_batch
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import make_train_step
from tests.random_params import random_params

STEPS, BATCH = 3, 8
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}  # a third of the compile time
SHARED = {
    'tokenizer': TokenizerConfig(kind='identity', channels=12, downsample=2),
    # eps: gradients that are zero but for rounding (of the keys' biases) would else be blown up to full steps.
    'optim': OptimConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9, eps=1e-3),
    'train': TrainConfig(steps=STEPS, compute_dtype='float32'),
}


def _config(width=16, heads=2):
    head = MagiHeadConfig(width=width, blocks=1, repeats=1)
    return MagiConfig(
        data=DataConfig(frames=3, height=8, width=12, batch_size=BATCH, max_interval=5),
        model=MagiModelConfig(width=width, blocks=2, heads=heads, mlp_width=24, head=head),
        **SHARED,
    )


def _videomar(heads=2):
    """VideoMAR with 15 tokens a frame, which no mesh axis divides. Two heads divide over two devices, not over four."""
    head, parts = HeadConfig(width=16, blocks=1, repeats=1), 3 * (24 // heads // 3,)
    return VideomarConfig(
        data=DataConfig(frames=3, height=6, width=10, batch_size=BATCH, max_interval=1),
        text=TextConfig(encoder='words', length=5, width=6, dropout=0.3),
        model=VideomarModelConfig(width=24, blocks=2, heads=heads, mlp_width=24, head=head, rope_split=parts),
        **SHARED,
    )


CONFIGS = {'magi': _config, 'videomar': _videomar}


def _parts(config, mesh):
    tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    objective, optimizer = make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps)
    return tokenizer, objective, optimizer, StateFactory(objective, optimizer, mesh)


def _mesh(config, count):
    return make_mesh(config, jax.devices()[:count])


def _batch(config, number, rng):
    data, settings = config.data, config.text
    batch = {'video': rng.integers(0, 256, (BATCH, data.frames, data.height, data.width, 3), np.uint8)}
    batch['interval'] = rng.integers(1, data.max_interval + 1, BATCH, np.int32)
    batch['example'] = np.arange(BATCH, dtype=np.int32) + number * BATCH
    if settings.encoder:
        batch['text'] = rng.normal(size=(BATCH, settings.length, settings.width)).astype(np.float32)
        batch['text_mask'] = np.arange(settings.length)[None] < rng.integers(1, settings.length + 1, (BATCH, 1))
    return batch


@functools.cache
def _train(system, mesh):
    """States and metrics of three steps from random weights: the initial ones hide most gradients behind zeros."""
    config = CONFIGS[system]()
    tokenizer, objective, optimizer, factory = _parts(config, mesh)
    params = random_params(objective.init)
    shardings = factory.shardings()
    state = jax.jit(factory._init, out_shardings=shardings, compiler_options=QUICK)(jax.random.key(1))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    state = state.replace(params=jax.device_put(params, shardings.params), ema=jax.device_put(params, shardings.ema))
    step = make_train_step(objective, optimizer, config, mesh)
    step = jax.jit(step, out_shardings=(shardings, None), compiler_options=QUICK)
    states, metrics, rng = [jax.device_get(state.params)], [], np.random.default_rng(0)
    for number in range(STEPS):
        batch = _batch(config, number, rng)
        state, values = step(state, tokenizer, put_batch(mesh, batch))
        states.append(jax.device_get(state.params))
        metrics.append(jax.device_get(values))
    return states, jax.device_get(state.ema), metrics


def _assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), ours, theirs)


STRATEGIES = [
    ('magi', {'data': 1, 'fsdp': 2, 'sequence': 2, 'tensor': 2}),
    ('magi', {'data': 2, 'fsdp': 2, 'tensor': 2}),  # moments are cut over data
]
MORE_STRATEGIES = [
    # Three frames: the last device holds padding alone. VideoMAR gathers keys, the last device holds 3 of 15 tokens.
    {'data': 1, 'fsdp': 2, 'sequence': 4},
    {'data': 2},
    {'data': 8},
    {'data': 4, 'fsdp': 2},
    {'data': 1, 'fsdp': 2},
    {'data': 1, 'sequence': 2},
    {'data': 1, 'tensor': 2},
    {'data': 2, 'sequence': 2, 'tensor': 2},
]
MORE_VIDEOMAR = [
    {'data': 1, 'fsdp': 2, 'sequence': 2, 'tensor': 2},  # one head on two devices: all keys are gathered
    {'data': 2, 'fsdp': 2, 'sequence': 2},  # tokens are exchanged for heads
    *MORE_STRATEGIES,
]
STRATEGIES += [pytest.param('magi', axes, marks=pytest.mark.slow) for axes in MORE_STRATEGIES]
STRATEGIES += [pytest.param('videomar', axes, marks=pytest.mark.slow) for axes in MORE_VIDEOMAR]


@pytest.mark.parametrize(('system', 'axes'), STRATEGIES, ids=str)
def test_many_devices_train_as_one(system, axes):
    states, ema, metrics = _train(system, _mesh(MeshConfig(**axes), math.prod(axes.values())))
    expected_states, expected_ema, expected_metrics = _train(system, _mesh(MeshConfig(), 1))
    _assert_close(metrics, expected_metrics)
    _assert_close(states, expected_states)
    _assert_close(ema, expected_ema)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0], states[-1]))
    assert np.median(moved) > 1e-3  # steps that change nothing would agree too


@pytest.fixture
def factory():
    return _parts(_config(), _mesh(MeshConfig(data=4, fsdp=2), 8))[-1]


def test_moments_and_average_are_cut_where_their_parameters_are_and_over_data(factory):
    shardings, state = factory.shardings(), factory.abstract()
    (_, (adam, *_)) = shardings.opt_state  # clipping holds no state, then AdamW
    assert adam.mu == adam.nu == shardings.ema
    assert adam.count.spec == shardings.step.spec == PartitionSpec()
    kernel = ('trunk', 'trunk', 'blocks', 'temporal_mlp', 'up', 'kernel')  # [2 blocks, 16, 24] over data 4, fsdp 2
    ours, parameter = (
        functools.reduce(lambda tree, name: tree[name], kernel, tree) for tree in (adam.mu, state.params)
    )
    assert (ours.spec, parameter.sharding.spec) == (
        PartitionSpec(None, ('fsdp', 'sequence', 'data'), 'tensor'),
        PartitionSpec(None, ('fsdp', 'sequence'), 'tensor'),
    )

    def bytes_of(tree):
        return sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))

    assert bytes_of(state.ema) < 0.3 * bytes_of(state.params)  # of data 4: a few leaves do not divide


def test_moments_are_cut_along_the_blocks_if_they_divide():
    factory = _parts(_config(), _mesh(MeshConfig(data=2, fsdp=2), 4))[-1]
    assert factory.shardings().ema['trunk']['trunk']['blocks']['temporal_mlp']['up']['kernel'].spec == PartitionSpec(
        ('data',), ('fsdp', 'sequence'), 'tensor'
    )


def test_momentum_of_muon_is_cut_as_its_matrices_average(factory):
    optimizer = make_optimizer(OptimConfig(name='muon'), STEPS)
    shardings = StateFactory(factory.objective, optimizer, factory.mesh).shardings()
    (_, muon) = shardings.opt_state
    momentum = jax.tree_util.tree_leaves_with_path(muon.inner_states['muon'].inner_state[0].mu)
    lie = {str(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(shardings.ema)}
    assert len(momentum) > 5 and any('fsdp' in str(sharding.spec) for _, sharding in momentum)
    assert all(lie[str(path)] == sharding for path, sharding in momentum)


def test_fsdp_divides_the_width(factory):
    """At least nine tenths of the parameters, so that the memory of a device shrinks with their number."""
    state = factory.abstract()
    names, divided, total = [], 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        local = leaf.sharding.shard_shape(leaf.shape)
        total += leaf.size
        if 'fsdp' in str(leaf.sharding.spec):
            names.append(jax.tree_util.keystr(path, simple=True, separator='/'))
            divided += leaf.size
            assert np.prod(local) == leaf.size / 2
    assert divided > 0.9 * total, f'{divided} of {total}: {names}'


def test_a_width_that_cannot_be_divided_is_named():
    factory = _parts(_config(width=20, heads=5), _mesh(MeshConfig(fsdp=8), 8))[-1]
    with pytest.raises(ConfigError, match=r'^\w+/.* \(.*20.*\) cannot be divided over mesh\.fsdp x mesh\.sequence = 8'):
        factory.abstract()


def test_meshes_and_batches_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r'mesh\.data = 3, .* do not lay out 8 devices'):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ConfigError, match=r'mesh\.fsdp = 3'):
        make_mesh(MeshConfig(fsdp=3))
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert dict(mesh.shape) == {'data': 4, 'fsdp': 2, 'sequence': 1, 'tensor': 1}
    check_batch(mesh, 16, 2)
    with pytest.raises(ConfigError, match=r'batch_size = 12 .* = 8 shards and optim\.accumulate = 1'):
        check_batch(mesh, 12, 1)
    with pytest.raises(ConfigError, match='choose a multiple of 32'):
        check_batch(mesh, 16, 4)
