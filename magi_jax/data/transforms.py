"""What happens to a video between its file and the network: pure functions of arrays and explicit random generators.

T frames of a clip, H rows, W columns.
"""

import numpy as np


def clip_indices(start: int, frames: int, interval: int) -> np.ndarray:
    """Frames of a clip, in training and in every measurement: int64 [frames], exactly evenly spaced."""
    return start + interval * np.arange(frames)


def draw_clip(rng: np.random.Generator, num_frames: int, frames: int, max_interval: int) -> tuple[np.ndarray, int]:
    """Which frames a training clip is made of (MAGI section 3.4, reading A6).

    Args:
      rng: consumed by two draws.
      num_frames: length of the video, >= frames.
      frames: T.
      max_interval: the largest distance between neighbouring frames.

    Returns:
      indices int64 [T], evenly spaced, and their interval: uniform on 1..min(max_interval, the largest that fits), so
      the label is always the true distance. The start is uniform over what remains.
    """
    interval = int(rng.integers(1, min(max_interval, largest_interval(num_frames, frames, max_interval)) + 1))
    start = rng.integers(0, num_frames - (frames - 1) * interval)
    return clip_indices(start, frames, interval), interval


def largest_interval(num_frames: int, frames: int, default: int) -> int:
    """The largest interval at which `frames` frames fit into `num_frames`; `default` for one frame, where any does."""
    return (num_frames - 1) // (frames - 1) if frames > 1 else default


def draw_flip(rng: np.random.Generator, horizontal: bool, vertical: bool) -> tuple[bool, bool]:
    """Whether a clip is mirrored left-right and upside down: each with probability 1/2 where allowed; one draw."""
    mirrored = rng.random(2) < 0.5
    return horizontal and bool(mirrored[0]), vertical and bool(mirrored[1])


def flip(video: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """Mirrors [T,H,W,3] left-right and upside down, as asked."""
    video = video[:, ::-1] if vertical else video
    if not horizontal:
        return video
    mirrored = np.empty(video.shape, video.dtype)
    for channel in range(video.shape[-1]):  # a quarter of the time that mirrored pixels of three bytes take
        mirrored[..., channel] = video[:, :, ::-1, channel]
    return mirrored
