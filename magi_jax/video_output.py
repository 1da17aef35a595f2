"""Writes sampled videos to files and shows them in notebooks.

Dimension key: B clips, T frames, H W pixels.
"""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from magi_jax.config import ConfigError
from magi_jax.data.video_file import write_gif, write_mp4

WRITERS = {'.mp4': write_mp4, '.gif': write_gif}
GAP = 2  # black pixels between clips
MIN_DISPLAY_WIDTH = 256  # pixels; narrower clips are displayed enlarged


def save_video(path: str | os.PathLike, video: np.ndarray, fps: float = 8) -> None:
    """Write a video as .mp4 (H.264) or .gif. Several clips are laid out as one grid.

    Args:
      path: path of the file; the extension decides the format.
      video: uint8 [T, H, W, 3] or [B, T, H, W, 3], as `Generator.sample` returns.
      fps: frames per second.

    Raises:
      ConfigError: the extension is unknown, or `video` has another shape or dtype.
      OSError: the file cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in WRITERS:
        raise ConfigError(f'{path} has no known extension: use {" or ".join(WRITERS)}')
    WRITERS[kind](path, _grid(video), fps)


def show_video(video: np.ndarray, fps: float = 8) -> Any:
    """Return an object that a notebook displays as a playing video. It needs IPython, which every notebook has.

    Args:
      video: as in `save_video`.
      fps: frames per second.

    Raises:
      ConfigError: `video` has another shape or dtype.
    """
    from IPython.display import Video

    grid = _grid(video)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'video.mp4'
        write_mp4(path, grid, fps)
        content = path.read_bytes()
    columns = _columns(len(video)) if video.ndim == 5 else 1
    width = max(grid.shape[2], columns * MIN_DISPLAY_WIDTH)
    attributes = 'controls autoplay loop muted playsinline'
    return Video(data=content, embed=True, mimetype='video/mp4', width=width, html_attributes=attributes)


def _grid(video: np.ndarray) -> np.ndarray:
    """Lay out clips [B, T, H, W, 3] in a near-square grid [T, H', W', 3]; one clip [T, H, W, 3] stays as it is."""
    if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3 or not video.size:
        raise ConfigError(
            f'video {video.dtype} {list(video.shape)} must be uint8 [T, H, W, 3] or [B, T, H, W, 3] with at least one'
            ' frame: pass the result of Generator.sample'
        )
    if video.ndim == 4:
        return video
    count, frames, height, width, _ = video.shape
    columns = _columns(count)
    rows = -(-count // columns)
    grid = np.zeros((frames, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), np.uint8)
    for number, clip in enumerate(video):
        top, left = (height + GAP) * (number // columns), (width + GAP) * (number % columns)
        grid[:, top : top + height, left : left + width] = clip
    return grid


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))
