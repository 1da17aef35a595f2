"""How the axes of a clip are sharded, as the networks see it. The base class keeps everything on one device.

The trunk is written once, for the data of one device. Where a layer needs data of other devices, it calls its layout.
`parallel/layout.py` implements the calls with collectives; this base class returns its input unchanged.

In training a spatial layer holds whole frames and a temporal layer whole sites (tokens at one place through all
frames); in sampling every device holds the same sites throughout.

Dimension key: B clips, R rows (frames), N sites, D width; r, n: the local part of R, N on one device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# Sharding of an array: replicated; [B, ...] over clips; keys and values of a cache, over clips and as the layout says.
COPIED, CLIPS, CACHED = 'copied', 'clips', 'cached'


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a single device.

    Attributes:
      parts: number of devices that share the frames or sites of a clip (mesh axis `sequence`).
      splits: number of devices that share attention heads and hidden units of the MLP (mesh axis `tensor`).
      lanes: sequence length that fills the matrix unit of the device; 1 where it makes no difference.
      fused: use the fused GPU kernels for attention.
      frame_attention: implementation of joint attention, as in `layers/frame_attention.py`.
    """

    parts: int = 1
    splits: int = 1
    lanes: int = 1
    fused: bool = False
    frame_attention: str = 'xla'

    def part(self, x: Array, axis: int) -> Array:
        """Return the local part of an axis, which is first padded at its end to a multiple of `parts`.

        Padding repeats the last entry, so computations on it stay finite; its results are dropped.
        """
        del axis
        return x

    def local_frames(self, x: Array, axis: int) -> Array:
        """Return the frames that this device embeds and predicts."""
        del axis
        return x

    def unpadded_frames(self, frames: int) -> Array:
        """Return bool [t]: which local frames are real, i.e. among the first `frames`, and not padding."""
        return jnp.ones((frames,), bool)

    def unpadded_sites(self, sites: int) -> Array:
        """Return bool [n]: which local sites are real, i.e. among the first `sites`, and not padding."""
        return jnp.ones((sites,), bool)

    def local_sites(self, x: Array, axis: int) -> Array:
        """Return the sites that this device embeds."""
        del axis
        return x

    def to_sites(self, x: Array) -> Array:
        """Reshard [B, r, N, D] of spatial layers to [B, R, n, D] of temporal layers."""
        return x

    def to_frames(self, x: Array, sites: int) -> Array:
        """Reshard [B, R, n, D] of temporal layers to [B, r, N, D] of spatial layers, N = `sites`."""
        del sites
        return x

    def gather_sites(self, x: Array) -> Array:
        """Gather [B, R, n, D] to [B, R, N, D], the keys and values of a spatial layer."""
        return x

    def to_attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Reshard queries, keys and values [B, R, n, D] so that every query meets all keys of joint attention."""
        return q, k, v

    def from_attention(self, x: Array) -> Array:
        """Reshard the output of joint attention to [B, R, n, D]."""
        return x

    def cached_sizes(self, sites: int, width: int) -> tuple[int, int]:
        """Return the sites and the width of the keys of joint attention that this device caches."""
        return sites, width

    def sum_over_tensor(self, x: Array) -> Array:
        """Sum partial products over the devices that share heads or hidden units."""
        return x

    def local_split(self, x: Array, axis: int) -> Array:
        """Return the heads or hidden units of this device from an axis of all of them."""
        del axis
        return x

    def gather(self, params: Any) -> Any:
        """Gather the sharded parameters outside the scanned blocks; leave those of the blocks as they are."""
        return params

    def gather_block(self, params: Any) -> Any:
        """Gather the parameters of one block, matrices in the dtype of the products."""
        return params

    def local_size(self, count: int) -> int:
        """Return how many of `count` sites this device holds, padding included."""
        return count

    def over_devices(self, function: Callable, inputs: Any, outputs: Any) -> Callable:
        """Turn a function of local arrays into a function of global arrays.

        Args:
          function: function of positional arguments that computes the part of one device.
          inputs: for each argument its sharding, COPIED, CLIPS or CACHED, or a tree of them.
          outputs: the sharding of its results, in the same form.
        """
        del inputs, outputs
        return function

    def mean(self, total: Array, weight: Array) -> Array:
        """Return the sum of `total` over all devices, divided by the sum of `weight`."""
        return total / weight


SINGLE_DEVICE = Layout()
