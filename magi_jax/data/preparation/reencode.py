"""One video file -> one stored video of constant frame rate and size, or the reason why not.

Nothing is believed that can be counted: containers state lengths that are wrong, and broken files that decode anyway.
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

# Seconds, and mean periods of the file, from one frame to the next: more is a broken clock, unless the file states that
# the frame is held. Copies for this time are stored then, as of a last frame.
_MAX_GAP, _MAX_PERIODS = 10.0, 10
# A file is truncated when more than this part of it, these seconds and these frames do not decode.
_MISSING_PART, _MISSING_SECONDS, _MISSING_FRAMES = 0.05, 0.5, 2
_MIN_RATE, _MAX_RATE = 0.01, 1000.0  # frames per second


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared dataset, apart from its source files."""

    height: int = 128
    width: int = 128
    fps: float = 0.0  # 0 = each file's own average rate
    min_frames: int = 16
    codec: stored_video.Codec = 'h264'
    keyframe_interval: int = 6
    videos_per_shard: int = 1024

    def __post_init__(self):
        if self.codec not in stored_video.CODECS:
            raise ConfigError(f'codec {self.codec!r} is not one of {", ".join(stored_video.CODECS)}')
        if min(self.height, self.width, self.min_frames, self.keyframe_interval, self.videos_per_shard) < 1:
            raise ConfigError('height, width, min_frames, keyframe_interval and videos_per_shard are at least 1')
        if self.codec == 'h264' and (self.height % 2 or self.width % 2):
            raise ConfigError(f'h264 needs an even size, not {self.height}x{self.width}; or use the codec lossless')
        if self.fps < 0:
            raise ConfigError(f'fps = {self.fps} is negative; 0 keeps the rate of each file')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A video that can be stored."""

    video: stored_video.StoredVideo
    fps: float


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A video that cannot be stored: a short reason to count by, and the details."""

    reason: Reason
    detail: str


def reencode_file(path: str | os.PathLike, settings: Settings) -> Prepared | Skipped:
    """Decodes the whole file, upright, with square pixels, at a constant rate, and encodes it.

    Args:
      path: any container and codec that FFmpeg knows.
      settings: size and rate of the result.

    Returns:
      The video, or why there is none.
    """
    try:
        with decoding.open_video(path) as video:
            return _reencode(video, settings)
    except decoding.VideoError as error:
        return Skipped(error.reason, error.detail)


def reencode_frames(frames: np.ndarray, fps: float, settings: Settings) -> Prepared | Skipped:
    """As `reencode_file`, of uint8 [T,H,W,3] at `fps` frames per second; the rate is not changed."""
    images = video_file.fit(frames, settings.height, settings.width)
    return _store(iter(images), fps, settings)


def constant_rate(frames: Iterable[tuple[Frame, float, float]], fps: float) -> Iterator[tuple[Frame, int]]:
    """How often each frame is shown at a constant rate, by its time of presentation.

    Output k, at time k / fps after the first frame, shows the newest frame there is by then, or a quarter of a period
    later: the jitter of rounded timestamps changes nothing at the rate of the file, nor at half of it.

    Args:
      frames: (frame, time, duration), times and durations in seconds, in order; the first time is that of output 0.
      fps: outputs per second.

    Yields:
      (frame, number of outputs, 0 or more).
    """
    held, start, shown, end = None, 0.0, 0, 0.0
    for frame, time, duration in frames:
        start = time if held is None else start
        if held is not None:
            outputs = _outputs(time - start, fps)
            yield held[0], outputs - shown
            shown = outputs
        held, end = (frame,), time + duration - start
    if held is not None:
        yield held[0], _outputs(end, fps) - shown


def _outputs(time: float, fps: float) -> int:
    """How many outputs there are before `time`."""
    return math.ceil(time * fps - 0.25)


def _reencode(video: decoding.OpenVideo, settings: Settings) -> Prepared | Skipped:
    rate = _rate(video)
    fps = settings.fps or rate
    if not _MIN_RATE <= fps <= _MAX_RATE:
        raise decoding.VideoError(f'the frame rate is unknown or absurd ({fps:g}): give one', 'bad_timestamps')
    timer = _Timer(video, 1 / (rate or fps))
    shown = constant_rate(timer.timed(), fps)
    result = _store(_at_constant_rate(shown, video.aspect, settings), fps, settings)
    _check_length(video, timer)
    return result


def _rate(video: decoding.OpenVideo) -> float:
    """Return frames per second; 0 = unknown.

    A container states an average, which counts how long the last frame is held, and FFmpeg guesses a rate from the
    first packets. Where they differ, the times of all packets decide. They always do for AVI: it states how many chunks
    a second there are, and some or most of them may have no frame.
    """
    rates = (float(rate or 0) for rate in (video.stream.average_rate, video.stream.guessed_rate))
    average, guessed = (rate if rate <= _MAX_RATE else 0.0 for rate in rates)
    alike = average and abs(guessed - average) < 0.02 * average
    if alike:
        average = guessed  # the average of a file of constant rate is off by the rounding of its length
    if alike and video.container.format.name != 'avi':
        return average
    mean = decoding.mean_rate(video.path)
    if not mean or abs(mean - average) < 0.1 * average:
        return average or guessed
    return guessed if abs(mean - guessed) < 0.02 * guessed else mean


class _Timer:
    """Gives each frame its time and duration, and adds them up."""

    def __init__(self, video: decoding.OpenVideo, period: float):
        self._video = video
        self.period = period  # seconds from one frame to the next, where the file does not tell
        self.first = 0.0  # time of the first frame
        self.end = 0.0  # of the last frame

    def timed(self) -> Iterator[tuple[av.VideoFrame, float, float]]:
        """Yield (frame, time, duration) in seconds; only the duration of the last frame means something."""
        restarts = bool(self._video.container.format.flags & av.format.Flags.ts_discont.value)
        clock, last, duration, left_out = decoding.Clock(self.period, restarts), None, 0.0, 0.0
        limit = max(_MAX_GAP, _MAX_PERIODS * self.period)
        for number, frame in enumerate(self._video.frames()):
            time = clock.time(frame)
            gap = 0.0 if last is None else time - last
            if gap < 0 or gap > max(limit, duration + self.period):
                raise decoding.VideoError(f'{gap:.3g} s from frame {number - 1} to the next', 'bad_timestamps')
            left_out += max(0.0, gap - limit)
            stamped = frame.pts is not None or frame.dts is not None
            duration = float(frame.duration * frame.time_base) if frame.duration and stamped else self.period
            # Many writers do not know how long the last frame lasts, and write 0 or the shortest time there is.
            duration = duration if duration >= min(self.period, gap or self.period) / 4 else self.period
            self.first, last = time if last is None else self.first, time
            self.end = time + duration
            yield frame, time - left_out, min(duration, limit)


def _at_constant_rate(
    shown: Iterable[tuple[av.VideoFrame, int]], aspect: float, settings: Settings
) -> Iterator[np.ndarray]:
    scaler = VideoReformatter()
    for frame, count in shown:
        if count:
            image = video_file.to_array(frame, aspect, scaler, settings.height, settings.width)
            yield from itertools.repeat(image, count)


def _store(images: Iterator[np.ndarray], fps: float, settings: Settings) -> Prepared | Skipped:
    video = stored_video.encode(images, fps, settings.codec, settings.keyframe_interval)
    if len(video) < settings.min_frames:
        return Skipped('too_short', f'{len(video)} frames at {fps:.4g} per second, at least {settings.min_frames}')
    return Prepared(video, fps)


def _check_length(video: decoding.OpenVideo, timer: _Timer) -> None:
    """Raise VideoError if frames are missing at the end: some formats (avi, webm) just end where they were cut.

    A file that has all bytes, or all frames of its index, is not cut, however long its last frame is held.
    """
    stream, container = video.stream, video.container
    if 0 < stream.frames <= video.packets or containers.is_whole(video.path):
        return
    if stream.duration:
        stated = float(stream.duration * stream.time_base)
    else:
        stated = (container.duration or 0) / av.time_base - max(0.0, timer.first)  # the first frame need not be at 0
    found = max(timer.end, video.end) - timer.first
    if stated - found > max(_MISSING_PART * stated, _MISSING_SECONDS, _MISSING_FRAMES * timer.period):
        raise decoding.VideoError(f'{found:.2f} of {stated:.2f} seconds can be decoded', 'truncated')
