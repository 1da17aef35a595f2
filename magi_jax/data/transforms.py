"""Cuts and flips clips: pure functions of arrays and explicit random generators.

Dimension key: T frames of a clip, H rows, W columns.
"""

import numpy as np


def clip_indices(start: int, frames: int, interval: int) -> np.ndarray:
    """Return the frame indices of a clip, int64 [frames], evenly spaced; for training and evaluation."""
    return start + interval * np.arange(frames)


def draw_clip(rng: np.random.Generator, num_frames: int, frames: int, max_interval: int) -> tuple[np.ndarray, int]:
    """Draw the frame indices of a training clip (MAGI section 3.4, reading A6).

    Args:
      rng: generator; the function draws twice.
      num_frames: length of the video, at least `frames`.
      frames: T.
      max_interval: largest frame interval.

    Returns:
      Indices int64 [T], evenly spaced, and their interval, uniform on 1..min(max_interval, largest that fits). So the
      interval is always the true one. The start is uniform over the remaining frames.
    """
    interval = int(rng.integers(1, min(max_interval, largest_interval(num_frames, frames, max_interval)) + 1))
    start = rng.integers(0, num_frames - (frames - 1) * interval)
    return clip_indices(start, frames, interval), interval


def largest_interval(num_frames: int, frames: int, default: int) -> int:
    """Return the largest interval at which `frames` frames fit into `num_frames`; `default` for one frame."""
    return (num_frames - 1) // (frames - 1) if frames > 1 else default


def draw_flip(rng: np.random.Generator, horizontal: bool, vertical: bool) -> tuple[bool, bool]:
    """Draw whether a clip is mirrored left-right and upside down, each with probability 1/2 where allowed."""
    mirrored = rng.random(2) < 0.5
    return horizontal and bool(mirrored[0]), vertical and bool(mirrored[1])


def flip(video: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """Mirror [T,H,W,3] left-right and upside down, as requested."""
    video = video[:, ::-1] if vertical else video
    if not horizontal:
        return video
    mirrored = np.empty(video.shape, video.dtype)
    for channel in range(video.shape[-1]):  # a quarter of the time of mirroring pixels of three bytes
        mirrored[..., channel] = video[:, :, ::-1, channel]
    return mirrored
