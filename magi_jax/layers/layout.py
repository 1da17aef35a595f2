"""Where the axes of a clip lie among devices, as the networks see it. Here: all of them on one device.

The trunk is written once, for the part of the data that one device holds. Wherever a layer needs what other devices
hold, it asks its layout; `parallel/layout.py` answers with collectives, this class with what it was given.

In training a spatial layer holds whole frames and a temporal layer whole sites (tokens at one place through all
frames); in sampling every device holds the same sites throughout.

Dimension key: B clips, R rows (frames), N sites, D width; r, n: the part of R, N that this device holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# How an array lies on the devices: whole everywhere; [B, ...] by clips; [L, B, F, n, D] by clips and sites.
COPIED, CLIPS, SITES = 'copied', 'clips', 'sites'


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything on one device.

    Attributes:
      parts: devices that share the frames or sites of a clip.
      splits: devices that share the heads of an attention and the hidden units of an MLP.
      lanes: tokens that a sequence should have to fill a device's matrix unit; 1 where it makes no difference.
      fused: attention by one GPU kernel.
    """

    parts: int = 1
    splits: int = 1
    lanes: int = 1
    fused: bool = False

    def part(self, x: Array, axis: int) -> Array:
        """This device's one of `parts` equal parts of an axis, which is padded at its end until it divides.

        Padding repeats the last entry: every computation on it stays finite, and its results are dropped.
        """
        del axis
        return x

    def own_frames(self, x: Array, axis: int) -> Array:
        """The frames that this device embeds and predicts."""
        del axis
        return x

    def real_frames(self, frames: int) -> Array:
        """bool [t]: which of this device's frames are among the first `frames`, and not padding."""
        return jnp.ones((frames,), bool)

    def own_sites(self, x: Array, axis: int) -> Array:
        """The sites that this device embeds."""
        del axis
        return x

    def to_sites(self, x: Array) -> Array:
        """[B, r, N, D] of spatial layers -> [B, R, n, D] of temporal layers."""
        return x

    def to_frames(self, x: Array, sites: int) -> Array:
        """[B, R, n, D] of temporal layers -> [B, r, N, D] of spatial layers, N = `sites`."""
        del sites
        return x

    def all_sites(self, x: Array) -> Array:
        """[B, R, n, D] -> [B, R, N, D]: what the queries of a spatial layer look at."""
        return x

    def sum_splits(self, x: Array) -> Array:
        """Sums the products of all splits."""
        return x

    def own_split(self, x: Array, axis: int) -> Array:
        """Of an axis of all heads or hidden units, those that this device holds."""
        del axis
        return x

    def gather(self, params: Any) -> Any:
        """Parameters outside the scanned blocks -> the same, whole (those of the blocks are left as they are)."""
        return params

    def gather_block(self, params: Any) -> Any:
        """Parameters of one block -> the same, whole, matrices in the dtype of the products."""
        return params

    def part_size(self, count: int) -> int:
        """How many of `count` sites this device holds, padding included."""
        return count

    def over_devices(self, function: Callable, inputs: Any, outputs: Any) -> Callable:
        """`function`, which computes one device's part, as a function of global arrays.

        Args:
          function: of positional arguments.
          inputs: a tuple with COPIED, CLIPS or SITES for each argument, or a tree of them.
          outputs: the same of its results.
        """
        del inputs, outputs
        return function

    def mean(self, total: Array, weight: Array) -> Array:
        """Sum of `total` over all devices / sum of `weight`."""
        return total / weight


WHOLE = Layout()
