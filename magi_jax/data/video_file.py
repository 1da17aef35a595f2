"""Reads and writes video files through PyAV.

Frames are returned in display order, without resampling in time.

Dimension key: T frames, H rows, W columns.
"""

import contextlib
import io
import itertools
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from magi_jax.data.decoding import VideoError, open_video


def read_video(
    path: str | os.PathLike, height: int | None = None, width: int | None = None, max_frames: int | None = None
) -> np.ndarray:
    """Decode the frames of a video file.

    Args:
      path: file with any container and codec that FFmpeg knows.
      height: height of the result. With `width`, frames are scaled to cover this size and cropped at the centre.
      width: width of the result. Give both or neither.
      max_frames: maximum number of frames to read. The rest of the file is then not checked.

    Returns:
      uint8 [T,H,W,3] RGB, T >= 1, with rotation and mirroring of the metadata applied. Without `height`, all frames
      have the size of the first frame, even if the stream changes its size.

    Raises:
      FileNotFoundError: the file is missing.
      VideoError: the file is empty, damaged or has no video stream.
    """
    if (height is None) != (width is None):
        raise ValueError(f'height = {height} and width = {width}: give both or neither')
    scaler, frames = VideoReformatter(), []
    for frame, aspect in _decode(path, max_frames):
        image = to_array(frame, aspect, scaler, height, width)
        frames.append(fit(image[None], *frames[0].shape[:2])[0] if frames else image)
    return np.stack(frames)


def read_frames(path: str | os.PathLike, indices: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode the frames at `indices`, uint8 [T,height,width,3].

    Frames up to the last index are decoded; only the requested frames are converted.

    Raises:
      FileNotFoundError, VideoError: as in `read_video`, or the file ends before the last index.
    """
    unique_indices = set(map(int, indices))
    scaler = VideoReformatter()
    found = {
        index: to_array(*item, scaler, height, width)
        for index, item in enumerate(_decode(path, max(unique_indices) + 1))
        if index in unique_indices
    }
    if len(found) < len(unique_indices):
        detail = f'has no frame {max(unique_indices)}: restore the file, which changed after it was indexed'
        raise VideoError(detail, 'truncated', path)
    return np.stack([found[int(index)] for index in indices])


def count_frames(path: str | os.PathLike) -> int:
    """Count the frames that can be decoded, by decoding the whole file. Raise the errors of `read_video`."""
    return sum(1 for _ in _decode(path, None))


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 [T,H,W,3] to cover (height, width) and crop at the centre -> uint8 [T,height,width,3]."""
    if frames.shape[1:3] == (height, width):
        return frames
    scaler = VideoReformatter()
    images = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), 'rgb24') for frame in frames)
    return np.stack([to_array(image, 1.0, scaler, height, width) for image in images])


def write_mp4(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Write uint8 [T,H,W,3] as H.264 (yuv420p). An odd height or width is padded by repeating the last row or column.

    The file appears under its name only when it is complete.

    Raises:
      OSError: the file cannot be written (the folder is missing or the disk is full).
    """
    _check_video(video)
    with mp4_writer(path, fps) as write:
        for image in video:
            write(image)


@contextlib.contextmanager
def mp4_writer(path: str | os.PathLike, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video as `write_mp4` does, frame by frame.

    `with` returns a function that takes uint8 [H,W,3] images of one size. The file appears under its name when the
    block ends without an error. Raise the errors of `write_mp4`.
    """
    with _atomic_file(path) as file, av.open(file, 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = 'yuv420p'
        stream.options = {'crf': '12'}

        def write(image: np.ndarray) -> None:
            _check_video(image[None])
            image = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], mode='edge')
            if not stream.codec_context.is_open:
                stream.height, stream.width = image.shape[:2]
            elif (stream.height, stream.width) != image.shape[:2]:
                sizes = f'{list(image.shape[:2])}, not {[stream.height, stream.width]} as the first one'
                raise ValueError(f'a frame has size {sizes}: give frames of one size')
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')))

        yield write
        if not stream.codec_context.is_open:
            raise ValueError(f'no frame was written to {path}: write at least one')
        container.mux(stream.encode(None))


def write_gif(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Write uint8 [T,H,W,3] as a GIF, see `encode_gif`.

    The file appears under its name only when it is complete. Raise the errors of `write_mp4`.
    """
    _write_atomically(path, encode_gif(video, fps))


def encode_gif(video: np.ndarray, fps: float) -> bytes:
    """Encode uint8 [T,H,W,3] as an endless GIF with at most 256 colours per frame.

    Equal neighbouring frames are stored as one longer frame.

    Raises:
      ValueError: the array has another dtype or shape, or is empty.
    """
    _check_video(video)
    first, *others = (Image.fromarray(image) for image in video)
    buffer = io.BytesIO()
    duration = 10 * max(2, round(100 / fps))  # in units of 10 ms; viewers show frames below 20 ms for 100 ms
    first.save(buffer, format='GIF', save_all=True, append_images=others, duration=duration, loop=0)
    return buffer.getvalue()


def _check_video(video: np.ndarray) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise ValueError(f'the video is {video.dtype} {list(video.shape)}: give uint8 [T,H,W,3] with T >= 1')


def _write_atomically(path: str | os.PathLike, content: bytes) -> None:
    with _atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def _atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it at the end.

    An error or a kill leaves no partial file.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f'cannot write {path}: there is no folder {path.parent}')
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with open(handle, 'wb') as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, f'cannot write {path}: {error.strerror}') from error
        raise


def _decode(path: str | os.PathLike, limit: int | None) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yield the first `limit` checked frames (None: all), each with its pixel aspect ratio (width over height)."""
    try:
        with open_video(path) as video:
            for frame in itertools.islice(video.frames(), limit):
                yield frame, video.aspect
    except VideoError as error:
        if error.reason == 'missing':
            raise FileNotFoundError(f'there is no video file {path}') from error
        raise


def to_array(
    frame: av.VideoFrame, aspect: float, scaler: VideoReformatter, height: int | None, width: int | None
) -> np.ndarray:
    """Convert a decoded frame to an upright RGB image, uint8 [H,W,3].

    Args:
      frame: frame from the decoder, with its orientation as metadata.
      aspect: width of a pixel divided by its height.
      scaler: scaler that is reused for all frames of a video.
      height: height of the result. With `width`, the frame is scaled to cover this size and cropped at the centre.
      width: width of the result. None for both keeps the size of the frame.
    """
    transposed, flipped = _orientation(frame)
    if height is None:
        # threads=1, because on small frames starting the threads of swscale costs more than the conversion.
        image = scaler.reformat(frame, format='rgb24', threads=1).to_ndarray()
        return _orient(image, transposed, flipped)
    if transposed:
        height, width = width, height
    scale = max(height / frame.height, width / (frame.width * aspect))
    rows, columns = max(height, round(frame.height * scale)), max(width, round(frame.width * aspect * scale))
    method = 'AREA' if scale < 1 else 'BICUBIC'
    image = scaler.reformat(frame, columns, rows, 'rgb24', interpolation=method, threads=1).to_ndarray()
    top, left = (rows - height) // 2, (columns - width) // 2
    return _orient(image[top : top + height, left : left + width], transposed, flipped)


def _orientation(frame: av.VideoFrame) -> tuple[bool, tuple[int, ...]]:
    """Return (transposed, axes): whether to exchange rows and columns, and the axes to reverse after that.

    The display matrix maps column x and row y to (a x + c y, b x + d y). It encodes one of eight orientations.
    """
    try:
        side = frame.side_data.get('DISPLAYMATRIX')
    except ValueError:  # PyAV does not know the side data of this frame, but its `rotation` works
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    else:
        if side is None:
            return False, ()
        a, b, _, c, d = np.frombuffer(side, np.int32)[:5].astype(float)
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    down, right = (b, c) if transposed else (d, a)
    return transposed, tuple(axis for axis, direction in enumerate((down, right)) if direction < 0)


def _orient(image: np.ndarray, transposed: bool, flipped: tuple[int, ...]) -> np.ndarray:
    image = image.swapaxes(0, 1) if transposed else image
    return np.ascontiguousarray(np.flip(image, flipped))
