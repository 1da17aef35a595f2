"""One video file -> one stored video of constant frame rate and size, or the reason why not.

Nothing is believed that can be counted: containers state lengths that are wrong, and broken files that decode anyway.
"""

import dataclasses
import itertools
import math
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from magi_jax.config import ConfigError
from magi_jax.data import stored_video, video_file

Reason = Literal[
    'missing',  # there is no such file
    'not_a_file',  # a folder, a pipe, a device
    'empty',
    'unreadable',  # the operating system says no
    'not_a_video',  # no container that FFmpeg knows, or cut off before its index
    'no_video_stream',
    'unsupported_codec',
    'corrupt',  # decoding fails or is concealed somewhere
    'truncated',  # fewer seconds decode than the file states
    'bad_timestamps',
    'too_short',
    'duplicate_id',
    'timed_out',
    'crashed',  # the decoder took its process with it, twice
]

Frame = TypeVar('Frame')

_MAX_GAP = 10.0  # seconds between two frames; more is a broken clock, and would be filled with copies
_MISSING = 0.05, 0.5  # a file is truncated when more than this part of it, and more than these seconds, do not decode


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


class _Unusable(Exception):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def reencode_file(path: str | os.PathLike, settings: Settings) -> Prepared | Skipped:
    """Decodes the whole file, upright, with square pixels, at a constant rate, and encodes it.

    Args:
      path: any container and codec that FFmpeg knows.
      settings: size and rate of the result.

    Returns:
      The video, or why there is none. Only errors of this program are raised.
    """
    try:
        _check_file(path)
        with _open(path) as container:
            return _reencode(container, settings)
    except _Unusable as error:
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


def _check_file(path: str | os.PathLike) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise _Unusable('missing', 'there is no such file') from None
    except OSError as error:
        raise _Unusable('unreadable', str(error.strerror)) from error
    if not stat.S_ISREG(status.st_mode):
        raise _Unusable('not_a_file', 'not a regular file')
    if not status.st_size:
        raise _Unusable('empty', '0 bytes')


def _open(path: str | os.PathLike) -> av.container.InputContainer:
    try:
        return av.open(os.fspath(path), metadata_errors='replace')
    except av.FFmpegError as error:
        if isinstance(error, PermissionError):
            raise _Unusable('unreadable', str(error.strerror)) from error
        raise _Unusable('not_a_video', str(error.strerror)) from error


def _reencode(container: av.container.InputContainer, settings: Settings) -> Prepared | Skipped:
    if not container.streams.video:
        raise _Unusable('no_video_stream', 'sound or subtitles only')
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise _Unusable('unsupported_codec', 'there is no decoder for the video stream')
    stream.codec_context.thread_count = 1  # one file a process
    rate = _rate(stream)
    fps = settings.fps or rate
    if not 0 < fps <= 1000:
        raise _Unusable('bad_timestamps', f'the frame rate is unknown or absurd ({fps:g}); give one')
    timer = _Timer(1 / (rate or fps))
    shown = constant_rate(timer.timed(_frames(container, stream)), fps)
    result = _store(_repeat(shown, float(stream.sample_aspect_ratio or 1), settings), fps, settings)
    _check_length(container, stream, timer)
    return result


def _rate(stream: av.VideoStream) -> float:
    """Frames per second; 0 = unknown."""
    average, guessed = float(stream.average_rate or 0), float(stream.guessed_rate or 0)
    # The average of a file of constant rate is off by the rounding of its length; the guess of another one is no guess.
    return guessed if not average or abs(guessed - average) < 0.02 * average else average


class _Timer:
    """Gives each frame its time and duration, and adds them up."""

    def __init__(self, period: float):
        self._period = period  # seconds, where a frame does not say how long it lasts
        self.first = 0.0  # time of the first frame
        self.seconds = 0.0  # from there to the end of the last one

    def timed(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, float, float]]:
        last = None
        for number, frame in enumerate(frames):
            time = frame.time if frame.pts is not None else 0.0 if last is None else last + self._period
            if last is not None and not 0 <= time - last <= _MAX_GAP:
                raise _Unusable('bad_timestamps', f'{time - last:.3g} s from frame {number - 1} to the next')
            # A last frame that claims to stay for a minute is a muxer's mistake.
            duration = min(1.0, float(frame.duration * frame.time_base) if frame.duration else self._period)
            self.first, last = time if last is None else self.first, time
            self.seconds = time - self.first + duration
            yield frame, time, duration


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """All frames of the stream; raises where one of them is damaged."""
    number = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise _Unusable('corrupt', f'frame {number} is damaged or cut off')
            yield frame
            number += 1
    except av.FFmpegError as error:
        if isinstance(error, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError)):
            raise _Unusable('unsupported_codec', str(error.strerror)) from error
        raise _Unusable('corrupt', f'frame {number} cannot be decoded: {error.strerror}') from error
    if not number:
        raise _Unusable('corrupt', 'no frame can be decoded')


def _repeat(shown: Iterable[tuple[av.VideoFrame, int]], aspect: float, settings: Settings) -> Iterator[np.ndarray]:
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


def _check_length(container: av.container.InputContainer, stream: av.VideoStream, timer: _Timer) -> None:
    """Some formats (avi, webm) just end where they were cut: only the length that they state tells."""
    if stream.duration:
        stated = float(stream.duration * stream.time_base)
    else:
        if tag := stream.metadata.get('DURATION'):  # Matroska's own, of this stream: sound may last longer
            hours, minutes, seconds = map(float, tag.split(':'))
            end = 3600 * hours + 60 * minutes + seconds
        else:
            end = (container.duration or 0) / av.time_base
        stated = end - max(0.0, timer.first)  # the first frame need not be at 0
    part, at_least = _MISSING
    if stated - timer.seconds > max(part * stated, at_least):
        raise _Unusable('truncated', f'{timer.seconds:.2f} of {stated:.2f} seconds can be decoded')
