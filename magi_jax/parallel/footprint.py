"""Whether a compiled program fits its chip, and how fast it could be at best."""

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
    """All collectives of one kind in a run of the program: how many, and bytes that a chip sends in them."""

    count: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What one chip needs for one run of a program.

    Attributes:
      memory: bytes of HBM by kind: 'arguments', 'temporaries', 'output', 'aliased' (output that takes the place of
        donated arguments), 'code'.
      flops: of matrix products and convolutions.
      hbm_bytes: read and written, as far as the text tells.
      cycles: sum of the compiler's own estimates, collectives excluded.
      move_cycles: the part of it that copies and slices.
      collectives: by kind.
      unknown_loops: loops that were counted once, their trip count being unknown.
    """

    memory: dict[str, int]
    flops: float
    hbm_bytes: float
    cycles: float
    move_cycles: float
    collectives: dict[str, Collective]
    unknown_loops: list[str]

    @property
    def needed(self) -> int:
        """Bytes of HBM."""
        return sum(size * (-1 if kind == 'aliased' else 1) for kind, size in self.memory.items())

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Lower bounds from peak rates, 'compute', 'hbm' and 'ici', and the compiler's own estimate, 'cycles'."""
        return {
            'compute': self.flops / chip.peak_flops,
            'hbm': self.hbm_bytes / chip.hbm_bandwidth,
            'ici': sum(collective.bytes for collective in self.collectives.values()) / chip.ici_bandwidth,
            'cycles': self.cycles / chip.clock,
        }


def read_program(compiled: jax.stages.Compiled) -> Footprint:
    """The footprint of a program compiled for TPUs; elsewhere cycles are 0."""
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
    amounts = (total[name] for name in ('flops', 'hbm_bytes', 'cycles', 'move_cycles'))
    return Footprint(kinds, *amounts, collectives, costs.unknown_loops)


def hbm_asked_for(message: str) -> float | None:
    """Bytes that a compilation out of HBM says it would have needed; None if the message is about something else."""
    found = re.search(r'([\d.]+)([KMGT]?)\)? (?:exceeds available HBM|of [\d.]+[KMGT]? hbm)', message)
    return float(found.group(1)) * UNITS[found.group(2)] if found else None


def smallest_slice(chip: Chip, chips: int, needed: float) -> str | None:
    """The smallest slice of the same chip on which `needed` bytes on each of `chips` would fit.

    By arithmetic: state and activations divided over all chips, nothing else changed. None: not even the largest.
    """
    for extent in chip.slices:
        count = math.prod(int(side) for side in extent.split('x'))
        if needed * chips <= chip.hbm_bytes * count:
            return f'{chip.name}:{extent}'
    return None


def bytes_per_device(tree: Any) -> int:
    """What the arrays of a tree of shapes with shardings take on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
