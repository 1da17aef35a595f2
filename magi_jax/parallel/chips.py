"""Peak rates, memory and slices of TPU chips, from the Cloud TPU documentation.

These are peaks, not measurements: a time computed from them is a lower bound.
"""

import dataclasses
import math

from magi_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one chip.

    Attributes:
      name: chip name in topologies.
      peak_flops: bf16 FLOP/s; a multiply-add counts as two.
      hbm_bytes: HBM that a program may use. The compiler reserves the rest of the advertised memory.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that all links of the chip send together.
      flops_per_cycle: FLOPs in one cycle of the clock that `estimated_cycles` counts. v4 and v5p have two cores of four
        128x128 matrix units, v5e has one core. For v6e we assume four units of 256x256: the compiler's estimate of a
        large matrix product (70 % of the peak of four) rules out two.
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
        """Clock in Hz, derived as peak_flops / flops_per_cycle."""
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
    """Parse a topology: 'v5e:4x4' -> (chip, 16 chips).

    Raises:
      ConfigError: the text is not CHIP:AxB or CHIP:AxBxC of a known chip.
    """
    name, _, extent = topology.partition(':')
    sides = extent.split('x')
    if name not in CHIPS or not all(side.isdigit() and int(side) for side in sides):
        raise ConfigError(f'topology {topology!r} is not CHIP:AxB[xC], such as v5e:4x4; chips: {", ".join(CHIPS)}')
    return CHIPS[name], math.prod(map(int, sides))
