"""Small programs as the TPU compiler writes them; what they cost is counted by hand."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from magi_jax.parallel.footprint import read_program
from magi_jax.parallel.hlo import Instruction, group_size, parse
from magi_jax.parallel.program import Costs, ring_bytes

# A loop of 5 loop_count around: an asynchronous all-gather spread over two fusions, a product of 64x128 and 128x256, a
# reduce-scatter, and an update in place of one row of [5, 64, 256]. Before it, a copy.
LOOP = (pathlib.Path(__file__).parent / 'loop.hlo').read_text()

GATHERED = 128 * 256 * 2  # bytes
SCATTERED = 16 * 256 * 4


@pytest.fixture(scope='module')
def total():
    return Costs(LOOP).total


def test_bodies_of_loops_count_as_often_as_they_run(total):
    assert total['flops'] == 5 * 2 * 64 * 128 * 256


def test_a_collective_spread_over_fusions_is_one(total):
    assert (total['count', 'all-gather'], total['count', 'reduce-scatter']) == (5, 5)
    assert total['bytes', 'all-gather'] == 5 * GATHERED * 3 / 4
    assert total['bytes', 'reduce-scatter'] == 5 * SCATTERED * 3


def test_cycles_and_the_part_that_moves(total):
    assert total['cycles'] == 5 * (1000 + 30) + 70
    assert total['move_cycles'] == 5 * 30 + 70


def test_bytes_of_hbm(total):
    """The gathered weights lie in on-chip memory; only a row of the stacked results is written."""
    w, x, y = 32 * 256 * 2, 64 * 128 * 2, 64 * 256 * 4
    body = (w + w) + (w + x + y) + (y + SCATTERED) + (y + y)
    index = 4 * 5 + 4 * 5 * 2  # the loop's counter: into the update, and its increment with the constant
    stacked = 5 * y
    compare, start = 5 * (4 + 4 + 1), stacked + 4
    assert total['hbm_bytes'] == pytest.approx(5 * body + index + start + 2 * x + compare, abs=64)


def test_a_loop_of_unknown_length_is_named():
    costs = Costs(LOOP.replace('constant(5)', 'parameter(1)'))
    assert costs.total['flops'] == 2 * 64 * 128 * 256 and costs.unknown_loops == ['loop']
    known = LOOP.replace('body=%body.1', 'body=%body.1, backend_config={"known_trip_count":{"n":"7"}}')
    assert Costs(known).total['flops'] == 7 * 2 * 64 * 128 * 256


def test_the_cheapest_branch_counts():
    branches = 'conditional(%x, %start, %start), branch_computations={%body.1, %nothing.1}'
    text = LOOP.replace('while(%start), condition=%condition.1, body=%body.1', branches)
    nothing = '\n%nothing.1 (n: s32[]) -> s32[] {\n  ROOT %n = s32[] parameter(0)\n}\n'
    assert Costs(text + nothing).total['flops'] == 0


@pytest.mark.parametrize(
    ('groups', 'size'),
    [
        ('{{0,1},{2,3}}', 2),
        ('[2,8]<=[4,4]T(1,0)', 8),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=8] {'axis_0':(1)4}", 4),
        ('{}', 16),
    ],
)
def test_groups_of_a_collective(groups, size):
    collective = Instruction('a', 'f32[8]{0}', 'all-reduce', '%x', f', channel_id=1, replica_groups={groups}, x={{0}}')
    assert group_size(collective, 16) == size
    assert ring_bytes(collective, 16) == pytest.approx(2 * 32 * (size - 1) / size)


@pytest.mark.parametrize(
    ('opcode', 'shape', 'sent'),
    [
        ('all-gather-start', '(bf16[2,8]{1,0}, bf16[8,8]{1,0})', 8 * 8 * 2 * 3 / 4),
        ('collective-permute-start', '(f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)})', 32),
        ('all-to-all', '(f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0})', 32 * 3 / 4),
    ],
)
def test_bytes_of_asynchronous_and_of_tupled_collectives(opcode, shape, sent):
    assert ring_bytes(Instruction('a', shape, opcode, '%x', ', replica_groups={{0,1,2,3}}'), 4) == sent


@pytest.mark.parametrize(
    ('line', 'flops'),
    [
        # Six heads as windows over dilated inputs, [6,32,16] x [6,16,24]: a kernel value meets its own head only.
        (
            '%c = f32[6,32,24] convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf',
            2 * 6 * 32 * 16 * 24,
        ),
        # A 3x3 convolution of 4x4 positions, padded by one: (3 x 4 - 2)^2 of the window's reads lie inside.
        (
            '%c = f32[4,4,2,5] convolution(%d, %e), window={size=3x3 pad=1_1x1_1}, dim_labels=01bf_01io->01bf',
            2 * 2 * 3 * 5 * 10 * 10,
        ),
        (
            '%c = f32[6,32,24] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}',
            2 * 6 * 32 * 16 * 24,
        ),
        (
            '%c = f32[6,32,24] custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config={"custom_call_'
            'config":{"body":"A==","cost_estimate":{"flops":"70","transcendentals":"3","bytes_accessed":"900"}}}',
            70,
        ),
    ],
    ids=['batched', 'padded', 'dot', 'kernel'],
)
def test_products(line, flops):
    shapes = {'a': '6,32,16', 'b': '6,16,24', 'd': '4,4,2,3', 'e': '3,3,3,5'}
    inputs = '\n'.join(f'  %{name} = f32[{dims}] parameter({i})' for i, (name, dims) in enumerate(shapes.items()))
    text = f'HloModule m\n\nENTRY %main (a: f32[1]) -> f32[1] {{\n{inputs}\n  ROOT {line}\n}}\n'
    total = Costs(text).total
    assert total['flops'] == flops
    assert total['kernel_flops'] == (flops if 'custom-call' in line else 0)
    assert total['hbm_bytes'] == 900 or 'custom-call' not in line
    assert parse(text).partitions == 1


def test_a_scan_that_is_really_compiled():
    """Here by the CPU's compiler: three products of 8x16 and 16x16 in a scan, which its own count takes for one."""

    def step(x, w):
        return jnp.tanh(x @ w), None

    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((3, 16, 16), jnp.float32)
    compiled = jax.jit(lambda x, ws: jax.lax.scan(step, x, ws)[0]).lower(*shapes).compile()
    footprint = read_program(compiled)
    assert footprint.flops == 3 * 2 * 8 * 16 * 16 and not footprint.unknown_loops
    assert footprint.memory['arguments'] == 4 * (8 * 16 + 3 * 16 * 16)
    assert footprint.needed >= footprint.memory['arguments'] + footprint.memory['output']
