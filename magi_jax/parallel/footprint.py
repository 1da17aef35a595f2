"""Memory and lower bounds on the time of a compiled program on one chip."""

import dataclasses
import math
import re
from typing import Any

import jax

from magi_jax.parallel.chips import Chip
from magi_jax.parallel.program import Costs

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a program: their count, and the bytes that a chip sends in them."""

    count: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Resources that one chip needs to run a program once.

    Attributes:
      memory: bytes of HBM by kind: 'arguments', 'temporaries', 'output', 'aliased' (output that reuses donated
        arguments), 'code'.
      flops: FLOPs of matrix products, convolutions and kernels.
      kernel_flops: the part of kernels, as they state it; the compiler does not know it.
      hbm_bytes: bytes read and written, as far as the program text shows.
      cycles: sum of the compiler's cycle estimates, without collectives and kernels.
      move_cycles: cycles of copies and slices, included in `cycles`.
      collectives: collectives by kind.
      unknown_loops: loops of unknown trip count, which are counted once.
    """

    memory: dict[str, int]
    flops: float
    kernel_flops: float
    hbm_bytes: float
    cycles: float
    move_cycles: float
    collectives: dict[str, Collective]
    unknown_loops: list[str]

    @property
    def needed(self) -> int:
        """Bytes of HBM that the program needs."""
        return sum(size * (-1 if kind == 'aliased' else 1) for kind, size in self.memory.items())

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Return seconds: lower bounds from peak rates ('compute', 'hbm', 'ici') and the estimate 'cycles'."""
        return {
            'compute': self.flops / chip.peak_flops,
            'hbm': self.hbm_bytes / chip.hbm_bandwidth,
            'ici': sum(collective.bytes for collective in self.collectives.values()) / chip.ici_bandwidth,
            'cycles': self.cycles / chip.clock,
        }


def read_program(compiled: jax.stages.Compiled) -> Footprint:
    """Read the footprint of a program compiled for TPUs. For other devices cycles are 0."""
    memory, costs = compiled.memory_analysis(), Costs(compiled.as_text())
    kinds = {
        'arguments': memory.argument_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'output': memory.output_size_in_bytes,
        'aliased': memory.alias_size_in_bytes,
        'code': memory.generated_code_size_in_bytes,
    }
    total = costs.total
    names = sorted({key[1] for key in total if isinstance(key, tuple)})
    collectives = {name: Collective(total['count', name], total['bytes', name]) for name in names}
    amounts = (total[name] for name in ('flops', 'kernel_flops', 'hbm_bytes', 'cycles', 'move_cycles'))
    return Footprint(kinds, *amounts, collectives, costs.unknown_loops)


def requested_hbm(message: str) -> float | None:
    """Parse the bytes that an out-of-HBM message of the compiler requests; None for another message."""
    found = re.search(r'([\d.]+)([KMGT]?)\)? (?:exceeds available HBM|of [\d.]+[KMGT]? hbm)', message)
    return float(found.group(1)) * UNITS[found.group(2)] if found else None


def smallest_slice(chip: Chip, chips: int, needed: float) -> str | None:
    """Return the smallest slice of the same chip into which `needed` bytes on each of `chips` fit, or None.

    The estimate divides state and activations evenly over all chips of the larger slice.
    """
    for extent in chip.slices:
        count = math.prod(int(side) for side in extent.split('x'))
        if needed * chips <= chip.hbm_bytes * count:
            return f'{chip.name}:{extent}'
    return None


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that a tree of shapes with shardings takes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
