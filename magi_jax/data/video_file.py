"""Video files in and out, through PyAV.

T frames, H rows, W columns. Frames come in the order in which they are shown, as many as the file has: nothing is
resampled in time.
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
    """The frames of a video file.

    Args:
      path: any container and codec that FFmpeg knows.
      height: of the result, with `width`: frames are scaled to cover this size, then cropped at the centre.
      width: of the result; give both or neither.
      max_frames: stop after this many frames; the rest of the file is then not checked.

    Returns:
      uint8 [T,H,W,3] RGB, T >= 1, upright (rotation and mirroring of the metadata applied). Without `height`, frames
      have the size of the first one, also where the stream changes its size.

    Raises:
      FileNotFoundError: there is no such file.
      VideoError: the file is empty, damaged or has no video in it.
    """
    if (height is None) != (width is None):
        raise ValueError('give both height and width, or neither')
    scaler, frames = VideoReformatter(), []
    for frame, aspect in _decode(path, max_frames):
        image = to_array(frame, aspect, scaler, height, width)
        frames.append(fit(image[None], *frames[0].shape[:2])[0] if frames else image)
    return np.stack(frames)


def read_frames(path: str | os.PathLike, indices: Sequence[int], height: int, width: int) -> np.ndarray:
    """The frames at `indices`, uint8 [T,height,width,3]; decodes up to the last of them and converts no others.

    Raises:
      FileNotFoundError, VideoError: as `read_video`; also when the file ends before the last index.
    """
    wanted = set(map(int, indices))
    scaler = VideoReformatter()
    found = {
        index: to_array(*item, scaler, height, width)
        for index, item in enumerate(_decode(path, max(wanted) + 1))
        if index in wanted
    }
    if len(found) < len(wanted):
        raise VideoError(f'has no frame {max(wanted)}: it changed after it was indexed', 'truncated', path)
    return np.stack([found[int(index)] for index in indices])


def count_frames(path: str | os.PathLike) -> int:
    """How many frames really decode: reads the whole file. Raises as `read_video`."""
    return sum(1 for _ in _decode(path, None))


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales uint8 [T,H,W,3] to cover (height, width) and crops at the centre -> uint8 [T,height,width,3]."""
    if frames.shape[1:3] == (height, width):
        return frames
    scaler = VideoReformatter()
    pictures = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), 'rgb24') for frame in frames)
    return np.stack([to_array(picture, 1.0, scaler, height, width) for picture in pictures])


def write_mp4(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Writes uint8 [T,H,W,3] as H.264 (yuv420p); an odd height or width is padded by one repeated row or column.

    The file appears under its name only when it is complete.

    Raises:
      OSError: it cannot be written (the folder is missing, the disk is full).
    """
    _check_video(video)
    with mp4_writer(path, fps) as write:
        for image in video:
            write(image)


@contextlib.contextmanager
def mp4_writer(path: str | os.PathLike, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a video as `write_mp4` does, frame by frame: `with` gives a function that takes uint8 [H,W,3], all alike.

    The file appears under its name when the block ends, unless by an error. Raises as `write_mp4`.
    """
    with _whole_file(path) as file, av.open(file, 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = 'yuv420p'
        stream.options = {'crf': '12'}

        def write(image: np.ndarray) -> None:
            _check_video(image[None])
            image = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], mode='edge')
            if not stream.codec_context.is_open:
                stream.height, stream.width = image.shape[:2]
            elif (stream.height, stream.width) != image.shape[:2]:
                raise ValueError(f'frames of {stream.height}x{stream.width} are followed by one of {image.shape[:2]}')
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')))

        yield write
        if not stream.codec_context.is_open:
            raise ValueError(f'no frame was given for {path}')
        container.mux(stream.encode(None))


def write_gif(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Writes uint8 [T,H,W,3] as `encode_gif` has it.

    The file appears under its name only when it is complete. Raises as `write_mp4`.
    """
    _write_whole(path, encode_gif(video, fps))


def encode_gif(video: np.ndarray, fps: float) -> bytes:
    """uint8 [T,H,W,3] -> an endless GIF, at most 256 colours a frame; equal neighbours become one longer frame.

    Raises:
      ValueError: it is no such video.
    """
    _check_video(video)
    first, *others = (Image.fromarray(image) for image in video)
    buffer = io.BytesIO()
    duration = 10 * max(2, round(100 / fps))  # GIF counts in 10 ms; viewers slow anything below 20 ms down to 100
    first.save(buffer, format='GIF', save_all=True, append_images=others, duration=duration, loop=0)
    return buffer.getvalue()


def _check_video(video: np.ndarray) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise ValueError(f'a video is uint8 [T,H,W,3] with T >= 1, not {video.dtype} {list(video.shape)}')


def _write_whole(path: str | os.PathLike, content: bytes) -> None:
    with _whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def _whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, renamed at the end: a full disk or a kill leaves no half file."""
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
    """Yield the first `limit` frames (None: all), each checked, with the width of a pixel over its height."""
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
    """One decoded frame as an upright RGB image.

    Args:
      frame: as the decoder gave it, its orientation only noted.
      aspect: width of a pixel over its height.
      scaler: to be reused for the next frame.
      height: of the result, with `width`: the frame is scaled to cover this size and cropped at the centre.
      width: of the result; None for both keeps the frame's size.

    Returns:
      uint8 [H,W,3].
    """
    turned, flipped = _orientation(frame)
    if height is None:
        # threads=1: swscale's own threads cost several times the conversion itself on small frames.
        image = scaler.reformat(frame, format='rgb24', threads=1).to_ndarray()
        return _orient(image, turned, flipped)
    if turned:
        height, width = width, height
    scale = max(height / frame.height, width / (frame.width * aspect))
    rows, columns = max(height, round(frame.height * scale)), max(width, round(frame.width * aspect * scale))
    method = 'AREA' if scale < 1 else 'BICUBIC'
    image = scaler.reformat(frame, columns, rows, 'rgb24', interpolation=method, threads=1).to_ndarray()
    top, left = (rows - height) // 2, (columns - width) // 2
    return _orient(image[top : top + height, left : left + width], turned, flipped)


def _orientation(frame: av.VideoFrame) -> tuple[bool, tuple[int, ...]]:
    """Return what makes a frame upright: whether to exchange rows and columns, and then which axes to reverse.

    The display matrix maps column x and row y to (a x + c y, b x + d y). Any of the eight orientations is one.
    """
    try:
        side = frame.side_data.get('DISPLAYMATRIX')
    except ValueError:  # PyAV has no name for another kind of side data of this frame; the angle it reads itself
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    else:
        if side is None:
            return False, ()
        a, b, _, c, d = np.frombuffer(side, np.int32)[:5].astype(float)
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    down, right = (b, c) if turned else (d, a)
    return turned, tuple(axis for axis, direction in enumerate((down, right)) if direction < 0)


def _orient(image: np.ndarray, turned: bool, flipped: tuple[int, ...]) -> np.ndarray:
    image = image.swapaxes(0, 1) if turned else image
    return np.ascontiguousarray(np.flip(image, flipped))
