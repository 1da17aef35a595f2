"""Fixed sin-cos position tables, and reading a table at fractional positions.

Dimension key: T frames, N tokens of a frame (raster order), D width, R rows.
"""

import einops
import jax.numpy as jnp
import numpy as np


def sincos_1d(length: int, width: int) -> np.ndarray:
    """Return float32 [length, width]: sines then cosines of position / 10000^(2k/width), k < width/2 (MAGI §4, MAR)."""
    frequency = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angle = np.arange(length)[:, None] * frequency[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def sincos_2d(height: int, width: int, channels: int) -> np.ndarray:
    """Return float32 [height * width, channels]: half of the channels for rows, half for columns."""
    rows = einops.repeat(sincos_1d(height, channels // 2), 'h d -> (h w) d', w=width)
    columns = einops.repeat(sincos_1d(width, channels // 2), 'w d -> (h w) d', h=height)
    return np.concatenate([rows, columns], axis=1)


def read_table(table: jnp.ndarray, positions: jnp.ndarray) -> jnp.ndarray:
    """Read rows [R, ...] of `table` [T, ...] at real-valued `positions` [R] in [0, T-1] by linear interpolation.

    Integer positions return table rows exactly.
    """
    low = jnp.clip(jnp.floor(positions).astype(jnp.int32), 0, table.shape[0] - 1)
    high = jnp.minimum(low + 1, table.shape[0] - 1)
    weight = (positions - low).reshape((-1,) + (1,) * (table.ndim - 1))
    return table[low] * (1 - weight) + table[high] * weight


def stretched_positions(frames: int, trained_frames: int) -> np.ndarray:
    """Return float32 positions [frames] of a video in a table of `trained_frames` rows.

    They are 0, 1, 2, ... if the video is not longer than the table. Otherwise they stretch over the table with aligned
    corners (MAGI §A.4).
    """
    if frames <= trained_frames:
        return np.arange(frames, dtype=np.float32)
    return np.linspace(0, trained_frames - 1, frames, dtype=np.float32)
