"""Decodes one video file into its frames, in display order and with their presentation times.

Every reader of video files in this package decodes here, so a folder of videos and the preparation of a dataset get the
same frames of a file. FFmpeg's own programs give the same frames.
"""

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator
from typing import Literal

import av
from av.stream import Disposition

Reason = Literal[
    'missing',  # there is no such file
    'not_a_file',  # a folder, a pipe, a device
    'empty',
    'unreadable',  # the operating system refuses to read it
    'not_a_video',  # no container that FFmpeg knows, or truncated before its index
    'no_video_stream',
    'unsupported_codec',
    'corrupt',  # decoding fails or is concealed somewhere
    'truncated',  # fewer frames decode than the file states
    'bad_timestamps',
    'too_short',
    'duplicate_id',
    'timed_out',
    'crashed',  # the decoder crashed its process twice
    'failed',  # any other error
]
# Reasons that need not come from the content of the file: the next attempt may succeed with the same bytes.
TRANSIENT_REASONS: tuple[Reason, ...] = ('missing', 'not_a_file', 'unreadable', 'timed_out', 'crashed', 'failed')

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# Without this option PyAV generates presentation times for containers without them (AVI), in the wrong order.
_OPTIONS = {'fflags': '-genpts'}
# Error numbers that do not depend on the content of the file.
_SYSTEM_ERRORS = {
    *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH),
}
_ASPECTS = 1 / 16, 16.0  # range of pixel aspect ratios; values outside are damaged metadata


class VideoError(ValueError):
    """A file cannot be used as a video. The message names the file and the problem."""

    def __init__(self, detail: str, reason: Reason = 'corrupt', path: str | os.PathLike | None = None):
        super().__init__(detail if path is None else f'{file_text(path)}: {detail}')
        self.detail, self.reason = detail, reason


class OpenVideo:
    """An open file and its video stream."""

    def __init__(self, path: str | os.PathLike, container: av.container.InputContainer):
        self.path, self.container = path, container
        self.stream = _choose_stream(path, container)
        self.stream.codec_context.thread_count = 1  # callers decode many files at once
        self.packets = 0  # number of video packets that `frames` has read
        self.end = 0.0  # seconds; end of the last packet that `frames` has read, of any stream

    @property
    def aspect(self) -> float:
        """Width of a pixel divided by its height."""
        aspect = float(self.stream.sample_aspect_ratio or 1)
        return aspect if _ASPECTS[0] <= aspect <= _ASPECTS[1] else 1.0

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield all frames in display order.

        Raises:
          VideoError: a frame is damaged or cannot be decoded, or the file has no frames.
        """
        number, last = 0, None
        try:
            for packet in self.container.demux():
                if packet.dts is not None and packet.time_base:
                    self.end = max(self.end, float((packet.dts + (packet.duration or 0)) * packet.time_base))
                is_flush = not packet.size and packet.dts is None  # flushes the decoder
                if packet.stream is not self.stream or not packet.size and not is_flush:
                    continue
                self.packets += not is_flush
                for frame in packet.decode():
                    # The decoder returns the last picture twice if the stream ends with "repeat it" (packed B-frames).
                    if is_flush and last is not None and _address(frame) == _address(last):
                        continue
                    if frame.is_corrupt:
                        raise VideoError(f'damaged or cut off at frame {number}', 'corrupt', self.path)
                    yield frame
                    number, last = number + 1, frame
        except av.FFmpegError as error:
            unsupported = isinstance(error, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError))
            reason = _system_reason(self.path, error) or ('unsupported_codec' if unsupported else 'corrupt')
            raise VideoError(f'cannot be decoded at frame {number}: {error.strerror}', reason, self.path) from error
        if not number:
            raise VideoError('has no frame that can be decoded', 'corrupt', self.path)


@contextlib.contextmanager
def open_video(path: str | os.PathLike) -> Iterator[OpenVideo]:
    """Open a file of any container and codec that FFmpeg knows, for one pass over its frames.

    Raises:
      VideoError: the file is missing, empty, unreadable, not a video, or has no video stream. Its `reason` says which.
    """
    _check_file(path)
    try:
        # `file:`, because FFmpeg reads the text before a colon as a protocol. Tags may have any encoding.
        name = f'file:{os.fsdecode(path)}'
        container = av.open(name, metadata_errors='replace', container_options=_OPTIONS)
    except av.FFmpegError as error:
        reason = _system_reason(path, error) or 'not_a_video'
        raise VideoError(f'cannot be decoded from the start: {error.strerror}', reason, path) from error
    with container:
        yield OpenVideo(path, container)


class Clock:
    """Computes presentation times of decoded frames, as libavcodec's `best_effort_timestamp` does.

    A container may state when frames are shown (pts), or only when packets are decoded (dts), as AVI does. The decoder
    passes on both. The clock uses the timestamps that went backwards less often.
    """

    def __init__(self, period: float, may_restart: bool):
        """Start a clock.

        Args:
          period: seconds from one frame to the next, for frames without a time in the file.
          may_restart: True if times of this format may restart (MPEG-TS and -PS, joined files). The clock then goes
            on from the previous time.
        """
        self._period, self._may_restart = period, may_restart
        self._last_pts = self._last_dts = -math.inf
        self._faulty_pts = self._faulty_dts = 0
        self._last, self._shift = None, 0.0

    def time(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame in seconds. It is lower than the previous time if the file says so."""
        timestamp = self._choose_timestamp(frame.pts, frame.dts)
        if timestamp is None:
            time = 0.0 if self._last is None else self._last + self._period
        else:
            time = float(timestamp * frame.time_base) + self._shift
            if self._may_restart and self._last is not None and time < self._last:
                self._shift += self._last + self._period - time
                time = self._last + self._period
        self._last = time
        return time

    def _choose_timestamp(self, pts: int | None, dts: int | None) -> int | None:
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        return pts if pts is not None and (dts is None or self._faulty_pts <= self._faulty_dts) else dts


def mean_rate(path: str | os.PathLike) -> float:
    """Return frames per second, computed from the times of all packets; 0 = unknown.

    The last packet does not count, because its picture may be held longer. The function reads the whole file and
    decodes nothing. It stops at damage; decoding the file raises for the same damage.
    """
    times = []
    with open_video(path) as video:
        with contextlib.suppress(av.FFmpegError):
            times.extend(packet.dts for packet in video.container.demux(video.stream) if packet.size)
        known = [time for time in times if time is not None]
        steps = [step for earlier, later in zip(known, known[1:]) if (step := later - earlier) > 0]
        if not steps or len(known) < 0.9 * len(times):
            return 0.0
        return float(len(steps) / (sum(steps) * video.stream.time_base))


def file_text(path: str | os.PathLike) -> str:
    r"""Return a file name as valid UTF-8 text. Bytes that are not valid UTF-8 become `\xNN`.

    Backslashes of such a name are doubled, so the original name can be restored.
    """
    name = os.fsencode(path)
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.replace(b'\\', b'\\\\').decode('utf-8', 'backslashreplace')


def _check_file(path: str | os.PathLike) -> None:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            open(path, 'rb').close()
    except FileNotFoundError:
        raise VideoError('there is no such video file', 'missing', path) from None
    except OSError as error:
        raise VideoError(str(error.strerror), 'unreadable', path) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError('not a regular file', 'not_a_file', path)
    if not status.st_size:
        raise VideoError('the file is empty (0 bytes)', 'empty', path)


def _system_reason(path: str | os.PathLike, error: av.FFmpegError) -> Reason | None:
    """Return 'unreadable' if the operating system failed, or None if the content of the file is the cause."""
    if error.errno == errno.EIO:  # from a disk, or from a demuxer that finds the file too short
        try:
            with open(path, 'rb') as file:
                while file.read(1 << 20):
                    continue
        except OSError:
            return 'unreadable'
    return 'unreadable' if error.errno in _SYSTEM_ERRORS else None


def _choose_stream(path: str | os.PathLike, container: av.container.InputContainer) -> av.VideoStream:
    """Return the default video track; among several, the largest one, then the first one.

    Still pictures such as covers do not count as video.
    """
    tracks = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
    if not tracks:
        found = 'only cover pictures' if container.streams.video else 'only sound, subtitles or data'
        raise VideoError(f'has no video stream, {found}', 'no_video_stream', path)

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        size = context.width * context.height if context else 0
        return stream.frames != 1, bool(stream.disposition & Disposition.default), size  # one frame: a cover picture

    chosen = max(tracks, key=rank)
    if chosen.codec_context is None:
        raise VideoError('there is no decoder for the video stream', 'unsupported_codec', path)
    return chosen


def _address(frame: av.VideoFrame) -> int:
    return frame.planes[0].buffer_ptr
