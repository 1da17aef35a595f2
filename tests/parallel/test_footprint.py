"""The arithmetic of fitting: peak rates, the smallest slice, what the compiler says it lacked."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from magi_jax.config import ConfigError, MeshConfig
from magi_jax.parallel.chips import CHIPS, parse_topology
from magi_jax.parallel.footprint import Collective, Footprint, bytes_per_device, requested_hbm, smallest_slice
from magi_jax.parallel.mesh import make_mesh

GIB = 2**30
MEMORY = {'arguments': 5, 'temporaries': 7, 'output': 4, 'aliased': 3, 'code': 1}


def test_time_at_peak_rates():
    footprint = Footprint(
        MEMORY, flops=394e12, kernel_flops=0.0, hbm_bytes=1638e9, cycles=3.006e9, move_cycles=0.0, unknown_loops=[],
        collectives={'all-gather': Collective(2, 100e9), 'all-to-all': Collective(1, 200e9)},
    )  # fmt: skip
    seconds = footprint.seconds(CHIPS['v5e'])
    assert seconds == pytest.approx({'compute': 2.0, 'hbm': 2.0, 'ici': 1.5, 'cycles': 2.0}, rel=1e-3)
    assert footprint.needed == 5 + 7 + 4 - 3 + 1


@pytest.mark.parametrize(('chip', 'clock'), [('v4', 1.05e9), ('v5e', 1.503e9), ('v5p', 1.75e9), ('v6e', 1.75e9)])
def test_clocks(chip, clock):
    assert CHIPS[chip].clock == pytest.approx(clock, rel=2e-3)


def test_slices_grow():
    for chip in CHIPS.values():
        counts = [parse_topology(f'{chip.name}:{extent}')[1] for extent in chip.slices]
        assert counts == sorted(set(counts)) and all(math.log2(count).is_integer() for count in counts)


@pytest.mark.parametrize('topology', ['v5e', 'v5e:', 'v5e:4y4', 'v5e:0x4', 'v5litepod:4x4', ''])
def test_topologies_that_are_none_are_named(topology):
    with pytest.raises(ConfigError, match=rf'topology {topology!r} is not CHIP:AxB\[xC\]'):
        parse_topology(topology)


@pytest.mark.parametrize(
    ('needed', 'extent'), [(15.0, '4x4'), (15.75, '4x4'), (15.8, '4x8'), (100, '8x16'), (3.9, '2x2'), (1000, None)]
)
def test_the_smallest_slice(needed, extent):
    found = smallest_slice(CHIPS['v5e'], 16, needed * GIB)
    assert found == (extent and f'v5e:{extent}')


@pytest.mark.parametrize(
    ('message', 'asked'),
    [
        ('the total memory required for HLO temporaries (146.41G) exceeds available HBM (15.75G). HLO', 146.41 * GIB),
        ('Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded', 512.5 * 2**20),
        ('Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.', None),
    ],
)
def test_what_the_compiler_lacked(message, asked):
    assert requested_hbm(message) == asked


def test_bytes_of_a_divided_tree():
    sharding = jax.sharding.NamedSharding(make_mesh(MeshConfig(fsdp=4, data=2)), PartitionSpec(None, 'fsdp'))
    tree = {'a': jax.ShapeDtypeStruct((3, 8), jnp.bfloat16, sharding=sharding)}
    assert bytes_per_device(tree) == 3 * 2 * 2
