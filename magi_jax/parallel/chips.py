"""What TPU chips can do at best, and the slices they come in. Public figures of the Cloud TPU documentation.

Peaks, not measurements: a time made from them is a lower bound.
"""

import dataclasses
import math

from magi_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in topology names.
      peak_flops: bf16 multiply-adds a second, counted as two.
      hbm_bytes: what the compiler lets a program use; it keeps the rest of the advertised memory for itself.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that all links of the chip together send.
      flops_per_cycle: of the clock in which the compiler counts `estimated_cycles`. Both v4 and v5p: two cores of four
        128x128 matrix units, v5e one. v6e: four of 256x256, since the compiler's estimate of a large matrix product
        rules out two (70 % of the peak of four; 88 to 93 % of the peaks assumed here for the other chips).
      slices: topologies, smallest first.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    flops_per_cycle: int
    slices: tuple[str, ...]

    @property
    def clock(self) -> float:
        """Hz, derived: peak_flops / flops_per_cycle."""
        return self.peak_flops / self.flops_per_cycle


GIB = 2.0**30
FLAT_SLICES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
TORUS_SLICES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
CHIPS = {
    'v4': Chip('v4', 275e12, 30.75 * GIB, 1228e9, 300e9, 2 * 4 * 2 * 128**2, TORUS_SLICES),
    'v5e': Chip('v5e', 197e12, 15.75 * GIB, 819e9, 200e9, 4 * 2 * 128**2, FLAT_SLICES),
    'v5p': Chip('v5p', 459e12, 95.73 * GIB, 2765e9, 600e9, 2 * 4 * 2 * 128**2, TORUS_SLICES),
    'v6e': Chip('v6e', 918e12, 31.24 * GIB, 1638e9, 400e9, 4 * 2 * 256**2, FLAT_SLICES),
}


def parse_topology(topology: str) -> tuple[Chip, int]:
    """'v5e:4x4' -> (the chip, 16 chips).

    Raises:
      ConfigError: not CHIP:AxB or CHIP:AxBxC of a known chip.
    """
    name, _, extent = topology.partition(':')
    sides = extent.split('x')
    if name not in CHIPS or not all(side.isdigit() and int(side) for side in sides):
        raise ConfigError(f'topology {topology!r} is not CHIP:AxB[xC], such as v5e:4x4; chips: {", ".join(CHIPS)}')
    return CHIPS[name], math.prod(map(int, sides))
