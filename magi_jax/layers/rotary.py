"""Rotary position embedding over time, rows and columns (RoFormer, arXiv 2104.09864; VideoMAR's 3D form).

Queries and keys are rotated by angles that grow with their position, so their product depends on the distance. The
channels of a head are divided over the three axes. Each axis has its own frequencies.

Dimension key: B clips, R rows (frames), N tokens of a frame (raster order), n: the local part of N on one device,
H heads, d head width.
"""

import einops
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import ConfigError

Array = jax.Array


def check_split(split: tuple[int, int, int], head_width: int) -> None:
    """Check that the channels of the three axes make up a head.

    Raises:
      ConfigError: the parts do not add up to the head width, or one of them is odd or negative.
    """
    if len(split) != 3 or sum(split) != head_width or any(part < 0 or part % 2 for part in split):
        raise ConfigError(
            f'rotary split {tuple(split)} does not divide a head of {head_width} channels over time, rows and columns:'
            f' choose three even numbers that add up to {head_width}'
        )


def rotary_tables(
    positions: Array, rows: int, columns: int, split: tuple[int, int, int] = (32, 16, 16), base: float = 1e4
) -> tuple[Array, Array]:
    """Return cosines and sines of the angles of every token, float32 [R, N, d] each.

    Args:
      positions: float [R], positions of the frames in time.
      rows: rows of tokens in a frame.
      columns: columns of tokens in a frame; N = rows * columns.
      split: channels of a head that time, rows and columns rotate. Each part is even.
      base: base of the frequencies; pair i of an axis with c channels turns by position / base^(2i / c).
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    positions = jnp.asarray(positions, jnp.float32)[:, None]
    angles = []
    for axis, channels in zip((positions, row[None], column[None]), split):
        frequencies = base ** (-np.arange(0, channels, 2) / max(channels, 1))
        angle = jnp.asarray(axis, jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)[None, None]
        angle = jnp.concatenate([angle, angle], axis=-1)  # both halves of a chunk turn by the same angles
        angles.append(jnp.broadcast_to(angle, (len(positions), rows * columns, channels)))
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array, split: tuple[int, int, int] = (32, 16, 16)) -> Array:
    """Rotate queries or keys by the angles of their tokens, in float32.

    Channel i of the first half of an axis' chunk and channel i of its second half form a pair.

    Args:
      x: [B, R, n, H, d].
      cos: cosines [R, n, d] of `rotary_tables`.
      sin: sines, same shape.
      split: as in `rotary_tables`.

    Returns:
      [B, R, n, H, d] in the dtype of x.
    """
    wide = x.astype(jnp.float32)
    partners = []
    for chunk in jnp.split(wide, np.cumsum(split)[:-1], axis=-1):
        first, second = jnp.split(chunk, 2, axis=-1)
        partners += [-second, first]
    cos, sin = (einops.rearrange(table, 'r n d -> 1 r n 1 d') for table in (cos, sin))
    return (wide * cos + jnp.concatenate(partners, axis=-1) * sin).astype(x.dtype)
