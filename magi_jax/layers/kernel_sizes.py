"""Static sizes and the list of steps of the TPU kernels of joint attention.

Dimension key: B clips, R query frames, S key frames, N tokens of a key frame, n tokens of a query frame, H heads, d
head width, G groups of heads, e heads of a group, W lanes of a group, T steps; q, k: tokens of a block.
"""

import dataclasses
import itertools

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

Array = jax.Array
Seen = tuple[tuple[int, ...], ...]  # for each query frame, the key frames that it sees

LANES, SUBLANES = 128, 16  # of a register of 16-bit values
LARGEST_BLOCK = 512
# Rows of the list of steps. FIRST and LAST mark the first and the last of the steps that add to one result.
QUERY_FRAME, QUERY_BLOCK, KEY_FRAME, KEY_BLOCK, FIRST, LAST = range(6)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The cut of `tokens` into `count` blocks of `size` tokens; the last one may end in padding."""

    tokens: int
    count: int
    size: int

    @classmethod
    def of(cls, tokens: int) -> 'Blocks':
        count = pl.cdiv(tokens, LARGEST_BLOCK)
        return cls(tokens, count, pl.cdiv(pl.cdiv(tokens, count), SUBLANES) * SUBLANES)

    @property
    def padded(self) -> int:
        return self.count * self.size


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a kernel.

    Attributes:
      queries: blocks of n.
      keys: blocks of N.
      heads: H.
      width: d.
      lanes_of_head: d with padding.
      together: e.
      seen: the key frames that each query frame sees.
    """

    queries: Blocks
    keys: Blocks
    heads: int
    width: int
    lanes_of_head: int
    together: int
    seen: Seen

    @classmethod
    def of(cls, q: Array, k: Array, seen: Seen) -> 'Sizes':
        heads, width = q.shape[3:]
        lanes = pl.next_power_of_2(width) if width <= LANES else pl.cdiv(width, LANES) * LANES
        return cls(Blocks.of(q.shape[2]), Blocks.of(k.shape[2]), heads, width, lanes, max(1, LANES // lanes), seen)

    @property
    def groups(self) -> int:
        return pl.cdiv(self.heads, self.together)

    @property
    def lanes(self) -> int:
        return self.together * self.lanes_of_head

    def merge(self, x: Array, blocks: Blocks) -> Array:
        """Merge [B, R, n, H, d] to [B, R, n, G W], with zeros as padding of tokens, heads and channels."""
        tokens, heads = blocks.padded - blocks.tokens, self.groups * self.together - self.heads
        x = jnp.pad(x, [(0, 0), (0, 0), (0, tokens), (0, heads), (0, self.lanes_of_head - self.width)])
        return einops.rearrange(x, 'b r n h d -> b r n (h d)')

    def split(self, x: Array, blocks: Blocks) -> Array:
        """Invert `merge`."""
        x = einops.rearrange(x, 'b r n (h d) -> b r n h d', d=self.lanes_of_head)
        return x[:, :, : blocks.tokens, : self.heads, : self.width]

    def sums(self, like: Array) -> jax.ShapeDtypeStruct:
        """Return the shape of one float32 value for each query and head of `like` [B, R, ...]."""
        shape = (*like.shape[:2], self.groups, self.queries.count, self.together, self.queries.size)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def steps(self, by_keys: bool) -> np.ndarray:
        """List the steps of one clip and group, int32 [6, T], in the order of their query (or key) blocks."""
        pairs = [(row, frame) for row, frames in enumerate(self.seen) for frame in frames]
        blocks = itertools.product(range(self.queries.count), range(self.keys.count))
        steps = [(row, i, frame, j) for (row, frame), (i, j) in itertools.product(pairs, blocks)]
        steps = np.array(sorted(steps, key=lambda step: step[2:] + step[:2] if by_keys else step)).T
        changes = np.any(np.diff(steps[2:] if by_keys else steps[:2]), axis=0)
        ends = [np.pad(changes, pad, constant_values=True) for pad in ((1, 0), (0, 1))]
        return np.int32([*steps, *ends])
