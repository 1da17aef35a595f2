"""Packs several sites into one sequence, so that temporal attention fills the lanes of a TPU.

The frames of one site form a short sequence. A TPU pads its 31 x 31 weights and 31 x 80 queries to 32 x 128. Four sites
in one masked sequence of 128 tokens need the same space and no copies between lanes.

Dimension key: B clips, R rows (frames), N sites, G tiles, s sites of a tile, r rows of a tile, padding included.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp

Array = jax.Array

SUBLANES = 8  # rows of a TPU register


@dataclasses.dataclass(frozen=True)
class SiteTiles:
    """The packing of [B, R, N, ...] into [B, G, s r, ...].

    Attributes:
      rows: R.
      sites: s.
      padding: r - R.
    """

    rows: int
    sites: int = 1
    padding: int = 0

    def pack(self, x: Array) -> Array:
        """Pack [B, R, N, ...] into [B, G, s r, ...]; padding is zero."""
        x = jnp.pad(x, [(0, 0), (0, self.padding)] + [(0, 0)] * (x.ndim - 2))
        return einops.rearrange(x, 'b r (g s) ... -> b g (s r) ...', s=self.sites)

    def unpack(self, x: Array) -> Array:
        """Unpack [B, G, s r, ...] into [B, R, N, ...]."""
        return einops.rearrange(x, 'b g (s r) ... -> b r (g s) ...', s=self.sites)[:, : self.rows]

    def mask(self, mask: Array) -> Array:
        """Expand a mask bool [..., R, R] to [..., s r, s r].

        A site sees its own rows; a padding row sees itself only.
        """
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + 2 * [(0, self.padding)])
        padding = jnp.diag(jnp.arange(self.rows + self.padding) >= self.rows)
        mask |= jnp.expand_dims(padding, tuple(range(mask.ndim - 2)))
        site = jnp.arange(self.sites).repeat(self.rows + self.padding)
        own = jnp.expand_dims(site[:, None] == site[None], tuple(range(mask.ndim - 2)))
        return jnp.tile(mask, (self.sites, self.sites)) & own

    def keys(self, numbers: Array) -> Array:
        """Expand row numbers [R] to those of the tokens of a tile [s r]."""
        return jnp.tile(jnp.pad(numbers, (0, self.padding)), self.sites)


def site_tiles(rows: int, sites: int, lanes: int) -> SiteTiles:
    """Return tiles of as many sites as fit into `lanes` and divide `sites`; one site if `lanes` is 1."""
    padding = -rows % SUBLANES
    together = lanes // (rows + padding)
    if together < 2:
        return SiteTiles(rows)
    return SiteTiles(rows, max(s for s in range(1, together + 1) if sites % s == 0), padding)
