"""Re-encodes one video file to a stored video of constant frame rate and size, or returns the reason why not.

Everything that can be counted is counted: some containers state wrong lengths, and some broken files decode anyway.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from magi_jax.config import ConfigError
from magi_jax.data import decoding, stored_video, video_file
from magi_jax.data.decoding import Reason
from magi_jax.data.preparation import containers

Frame = TypeVar('Frame')

# Largest gap between two frames: the larger one of these seconds and mean periods of the file. A larger gap is a broken
# clock, unless the file states that the frame is held; then copies of the frame fill only this time.
_MAX_GAP, _MAX_PERIODS = 10.0, 10
# A file is truncated if more than this fraction, these seconds and these frames do not decode.
_MISSING_PART, _MISSING_SECONDS, _MISSING_FRAMES = 0.05, 0.5, 2
_MIN_RATE, _MAX_RATE = 0.01, 1000.0  # frames per second


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that determine the bytes of a prepared dataset, besides its source files."""

    height: int = 128
    width: int = 128
    fps: float = 0.0  # 0 = the average rate of each file
    min_frames: int = 16
    codec: stored_video.Codec = 'h264'
    keyframe_interval: int = 6
    videos_per_shard: int = 1024

    def __post_init__(self):
        if self.codec not in stored_video.CODECS:
            raise ConfigError(f'there is no codec {self.codec!r}: choose one of {", ".join(stored_video.CODECS)}')
        if min(self.height, self.width, self.min_frames, self.keyframe_interval, self.videos_per_shard) < 1:
            raise ConfigError('height, width, min_frames, keyframe_interval and videos_per_shard must be at least 1')
        if self.codec == 'h264' and (self.height % 2 or self.width % 2):
            raise ConfigError(f'size {self.height}x{self.width} is not even: give an even size or --codec lossless')
        if self.fps < 0:
            raise ConfigError(f'fps = {self.fps} is negative: give 0 to keep the rate of each file')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A video that can be stored."""

    video: stored_video.StoredVideo
    fps: float


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A video that cannot be stored, with a short reason for statistics and the details."""

    reason: Reason
    detail: str


def reencode_file(path: str | os.PathLike, settings: Settings) -> Prepared | Skipped:
    """Decode the whole file, upright, with square pixels and at a constant rate, and encode it.

    Args:
      path: file with any container and codec that FFmpeg knows.
      settings: size and rate of the result.

    Returns:
      The video, or the reason why it cannot be stored.
    """
    try:
        with decoding.open_video(path) as video:
            return _reencode(video, settings)
    except decoding.VideoError as error:
        return Skipped(error.reason, error.detail)


def reencode_frames(frames: np.ndarray, fps: float, settings: Settings) -> Prepared | Skipped:
    """Encode uint8 [T,H,W,3] at `fps` frames per second as `reencode_file` does, without changing the rate."""
    images = video_file.fit(frames, settings.height, settings.width)
    return _store(iter(images), fps, settings)


def constant_rate(frames: Iterable[tuple[Frame, float, float]], fps: float) -> Iterator[tuple[Frame, int]]:
    """Yield how often each frame is repeated to get a constant rate, computed from the presentation times.

    Output k is at time k / fps after the first frame. It shows the newest frame at that time or up to a quarter of a
    period later. The tolerance absorbs the jitter of rounded timestamps at the rate of the file and at half of it.

    Args:
      frames: (frame, time, duration) in order, with times and durations in seconds. The first time is that of output 0.
      fps: outputs per second.

    Yields:
      (frame, number of outputs, 0 or more).
    """
    previous, start, emitted, end = None, 0.0, 0, 0.0
    for frame, time, duration in frames:
        start = time if previous is None else start
        if previous is not None:
            outputs = _outputs(time - start, fps)
            yield previous[0], outputs - emitted
            emitted = outputs
        previous, end = (frame,), time + duration - start
    if previous is not None:
        yield previous[0], _outputs(end, fps) - emitted


def _outputs(time: float, fps: float) -> int:
    """Count the outputs before `time`."""
    return math.ceil(time * fps - 0.25)


def _reencode(video: decoding.OpenVideo, settings: Settings) -> Prepared | Skipped:
    rate = _rate(video)
    fps = settings.fps or rate
    if not _MIN_RATE <= fps <= _MAX_RATE:
        raise decoding.VideoError(f'the frame rate is unknown or impossible ({fps:g}): give --fps', 'bad_timestamps')
    timer = _Timer(video, 1 / (rate or fps))
    counted_frames = constant_rate(timer.timed_frames(), fps)
    result = _store(_at_constant_rate(counted_frames, video.aspect, settings), fps, settings)
    _check_length(video, timer)
    return result


def _rate(video: decoding.OpenVideo) -> float:
    """Return frames per second; 0 = unknown.

    A container states an average rate, which includes how long the last frame is held. FFmpeg guesses a rate from the
    first packets. If they differ, the times of all packets decide. For AVI they always decide: AVI states the rate of
    chunks, and many chunks may have no frame.
    """
    rates = (float(rate or 0) for rate in (video.stream.average_rate, video.stream.guessed_rate))
    average, guessed = (rate if rate <= _MAX_RATE else 0.0 for rate in rates)
    rates_agree = average and abs(guessed - average) < 0.02 * average
    if rates_agree:
        average = guessed  # at a constant rate, the rounding of the length makes the average inexact
    if rates_agree and video.container.format.name != 'avi':
        return average
    mean = decoding.mean_rate(video.path)
    if not mean or abs(mean - average) < 0.1 * average:
        return average or guessed
    return guessed if abs(mean - guessed) < 0.02 * guessed else mean


class _Timer:
    """Assigns a time and a duration to each frame, and tracks the end of the last frame."""

    def __init__(self, video: decoding.OpenVideo, period: float):
        self._video = video
        self.period = period  # seconds from one frame to the next, for frames without a time in the file
        self.first = 0.0  # time of the first frame
        self.end = 0.0  # end of the last frame

    def timed_frames(self) -> Iterator[tuple[av.VideoFrame, float, float]]:
        """Yield (frame, time, duration) in seconds. Only the duration of the last frame is meaningful."""
        restarts = bool(self._video.container.format.flags & av.format.Flags.ts_discont.value)
        clock, last, duration, cut_time = decoding.Clock(self.period, restarts), None, 0.0, 0.0
        limit = max(_MAX_GAP, _MAX_PERIODS * self.period)
        for number, frame in enumerate(self._video.frames()):
            time = clock.time(frame)
            gap = 0.0 if last is None else time - last
            if gap < 0 or gap > max(limit, duration + self.period):
                raise decoding.VideoError(f'{gap:.3g} s from frame {number - 1} to the next', 'bad_timestamps')
            cut_time += max(0.0, gap - limit)
            has_timestamp = frame.pts is not None or frame.dts is not None
            duration = float(frame.duration * frame.time_base) if frame.duration and has_timestamp else self.period
            # Many writers do not know the duration of the last frame and write 0 or the shortest possible time.
            duration = duration if duration >= min(self.period, gap or self.period) / 4 else self.period
            self.first, last = time if last is None else self.first, time
            self.end = time + duration
            yield frame, time - cut_time, min(duration, limit)


def _at_constant_rate(
    counted_frames: Iterable[tuple[av.VideoFrame, int]], aspect: float, settings: Settings
) -> Iterator[np.ndarray]:
    scaler = VideoReformatter()
    for frame, count in counted_frames:
        if count:
            image = video_file.to_array(frame, aspect, scaler, settings.height, settings.width)
            yield from itertools.repeat(image, count)


def _store(images: Iterator[np.ndarray], fps: float, settings: Settings) -> Prepared | Skipped:
    video = stored_video.encode(images, fps, settings.codec, settings.keyframe_interval)
    if len(video) < settings.min_frames:
        found = f'{len(video)} frames at {fps:.4g} per second'
        return Skipped('too_short', f'{found}, fewer than min_frames = {settings.min_frames}')
    return Prepared(video, fps)


def _check_length(video: decoding.OpenVideo, timer: _Timer) -> None:
    """Raise VideoError if frames are missing at the end. Truncated files of some formats (avi, webm) decode normally.

    A file with all its bytes, or with all frames of its index, is not truncated, even if its last frame is held long.
    """
    stream, container = video.stream, video.container
    if 0 < stream.frames <= video.packets or containers.is_complete(video.path):
        return
    if stream.duration:
        stated = float(stream.duration * stream.time_base)
    else:
        stated = (container.duration or 0) / av.time_base - max(0.0, timer.first)  # the first frame need not be at 0
    found = max(timer.end, video.end) - timer.first
    if stated - found > max(_MISSING_PART * stated, _MISSING_SECONDS, _MISSING_FRAMES * timer.period):
        raise decoding.VideoError(f'{found:.2f} of {stated:.2f} seconds can be decoded', 'truncated')
