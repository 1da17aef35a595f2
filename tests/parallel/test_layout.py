"""What lies where, and what the compiled step sends between devices: stored, and compared on every run.

After an intended change: python -m tests.parallel.test_layout rewrites shardings.json; read its diff.
"""

import collections
import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.sharding import PartitionSpec as P

from magi_jax.config import MeshConfig, override
from magi_jax.layers.trunk import POLICIES
from magi_jax.parallel.layout import REPLICATED, _gather
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.lowering import abstract_tokenizer, lower_train_step, trace_train_step
from tests.training.test_mesh import QUICK, _config, _parts, _videomar

GOLDEN = Path(__file__).with_name('shardings.json')
STRATEGIES = {
    'data': MeshConfig(data=8),
    'fsdp': MeshConfig(data=1, fsdp=8),
    'fsdp_tensor': MeshConfig(data=2, fsdp=2, tensor=2),
    'fsdp_sequence': MeshConfig(data=1, fsdp=2, sequence=4),
}
CASES = {name: (_config, axes) for name, axes in STRATEGIES.items()}
CASES['videomar_fsdp_tensor'] = _videomar, STRATEGIES['fsdp_tensor']


def shardings(name):
    """{parameter: PartitionSpec as text} of a tiny model."""
    config, axes = CASES[name]
    specs = _parts(config(), make_mesh(axes))[-1].shardings().params
    leaves = jax.tree_util.tree_leaves_with_path(specs)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): str(leaf.spec) for path, leaf in leaves}


@pytest.mark.parametrize('name', CASES)
def test_parameters_lie_as_stored(name):
    assert shardings(name) == json.loads(GOLDEN.read_text())[name]


@pytest.fixture(scope='module')
def program():
    """HLO of the train step over frames and sites, compiled for the virtual devices."""
    config, mesh = _config(), make_mesh(STRATEGIES['fsdp_sequence'])
    return lower_train_step(config, mesh, abstract_tokenizer(config)).compile(compiler_options=QUICK).as_text()


@pytest.mark.parametrize('remat', POLICIES)
def test_whole_weights_are_not_kept(remat):
    """What the backward pass of a product with a gathered matrix keeps: its shard and the input, no whole matrix."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    whole, rows = jnp.ones((16, 24)), jnp.ones((5, 16))

    def kept(shard, rows):
        def product(shard, rows):
            return jnp.sin(rows @ _gather(shard, ((0, 'fsdp'),), jnp.float32))

        backward = jax.vjp(jax.checkpoint(product, policy=POLICIES[remat]), shard, rows)[1]
        sizes.extend(x.size for x in jax.tree.leaves(backward))
        return shard

    sizes = []
    jax.eval_shape(jax.shard_map(kept, mesh=mesh, in_specs=(P('fsdp'), P()), out_specs=P('fsdp')), whole, rows)
    assert sizes and whole.size not in sizes and whole.size // 8 in sizes


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('remat', ['none', *POLICIES])
def test_only_with_remat_is_anything_computed_again(remat, dtype):
    """JAX rounds what a rematerialised block keeps to its own precision, which on a CPU is a copy of each array."""
    config = _config()
    config = dataclasses.replace(config, train=override(config.train, [f'compute_dtype={dtype}', f'remat={remat}']))
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    program = str(trace_train_step(config, mesh, abstract_tokenizer(config)).jaxpr)
    assert program.count('remat') == (0 if remat == 'none' else 2)  # the blocks, and the head's loss


def shapes(program, operation):
    """Sizes of the results of an operation, each place in the program once."""
    found = re.findall(rf'= \(?(?:f32|bf16|s32|u32|pred)\[([\d,]*)\][^=]* {operation}(?:-start)?\(', program)
    return [tuple(map(int, filter(None, sizes.split(',')))) for sizes in found]


def test_frames_and_sites_change_places_twice_a_block_each_way(program):
    """Scan bodies are written once: two exchanges in the forward and two in the backward one, and no more."""
    assert len(re.findall(r' all-to-all(?:-start)?\(', program)) == 4


def test_only_parameters_are_gathered(program):
    config = _config()
    params = _parts(config, make_mesh(STRATEGIES['fsdp_sequence']))[-1].abstract().params
    whole = {leaf.shape[1:] if 'blocks' in jax.tree_util.keystr(path) else leaf.shape
             for path, leaf in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    sizes = {math.prod(shape) // part for shape in whole for part in (1, 2, 4)}
    gathered = shapes(program, 'all-gather')
    assert gathered and {math.prod(shape) for shape in gathered} <= sizes


def test_gradients_are_scattered(program):
    """Every gradient of a sharded parameter goes through reduce-scatters; sums over several devices are of norms,
    biases and scalars. (Sums over the one device of `tensor`, which a TPU compiler removes, do not count.)"""
    assert shapes(program, 'reduce-scatter')
    alone = ','.join(f'{{{device}}}' for device in range(8))
    shared = '\n'.join(line for line in program.splitlines() if f'replica_groups={{{alone}}}' not in line)
    assert max(map(math.prod, shapes(shared, 'all-reduce'))) < _config().model.width ** 2


def exchanges(config):
    """{kind: how often it stands in the train step} of collectives over `sequence` that exchange activations."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))
    found = collections.Counter()
    for equation in _equations(trace_train_step(config, mesh, abstract_tokenizer(config)).jaxpr.jaxpr):
        parameters, name = equation.params, equation.primitive.name
        if 'sequence' in str(parameters.get('axis_name')) and any(x.aval.ndim > 3 for x in equation.invars):
            found[name] += 1
    return found


def test_joint_attention_exchanges_tokens_for_heads_or_gathers_keys():
    """Two heads a device exchange q, k, v and the output; one head a device cannot: keys and values are gathered."""
    assert exchanges(_videomar(heads=4)) == {'all_to_all': 2 * 4}  # forward, backward
    assert exchanges(_videomar(heads=2)) == {'all_gather': 2, 'reduce_scatter': 2}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        inner = [getattr(value, 'jaxpr', value) for value in jax.tree.leaves(list(equation.params.values()))]
        for body in (value for value in inner if isinstance(value, core.Jaxpr)):
            yield from _equations(body)


def sums(jaxpr, in_loop=False):
    """(whether in a loop, size) of every array that the program sums over copies of the parameters."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith('psum') and set(equation.params['axes']) & set(REPLICATED):
            yield from ((in_loop, math.prod(x.aval.shape)) for x in equation.invars)
        inner = [getattr(value, 'jaxpr', value) for value in jax.tree.leaves(list(equation.params.values()))]
        for body in (value for value in inner if isinstance(value, core.Jaxpr)):
            yield from sums(body, in_loop or equation.primitive.name in ('scan', 'while'))


def test_gradients_are_summed_over_copies_once_a_step():
    """After the last micro-batch; in their loop only the loss and its weight are."""
    config, mesh = _config(), make_mesh(STRATEGIES['data'])
    data, optim = override(config.data, ['batch_size=16']), override(config.optim, ['accumulate=2'])
    config = dataclasses.replace(config, data=data, optim=optim)
    found = list(sums(trace_train_step(config, mesh, abstract_tokenizer(config)).jaxpr.jaxpr))
    params = _parts(config, mesh)[-1].abstract().params
    assert {size for in_loop, size in found if in_loop} == {1}
    outside = [size for in_loop, size in found if not in_loop]
    assert sorted(outside) == sorted(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == '__main__':
    GOLDEN.write_text(json.dumps({name: shardings(name) for name in CASES}, indent=1) + '\n')
