"""How a prepared dataset keeps a video: H.264 packets one after another, with a keyframe every few frames.

The bytes are a plain H.264 elementary stream (`ffplay -f h264` shows it). It has no B-frames, so packet i is frame i,
and no container, so opening one costs nothing: frame i needs the packets from the last keyframe on, which their sizes
find.

T frames, H rows, W columns.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from magi_jax.data.decoding import VideoError
from magi_jax.data.video_file import to_array

Codec = Literal['h264', 'lossless']
CODECS = ('h264', 'lossless')
_ENCODERS = {
    'h264': ('libx264', 'yuv420p', {'crf': '20', 'preset': 'faster', 'tune': 'fastdecode'}),
    # RGB is kept as it is: subsampled colours bleed over the hard edges of synthetic videos.
    'lossless': ('libx264rgb', 'rgb24', {'crf': '0', 'preset': 'veryfast'}),
}


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """An encoded video."""

    stream: bytes  # all packets
    sizes: np.ndarray  # int32 [T], bytes of each packet
    keyframe_interval: int  # frames 0, k, 2k, ... can be decoded without the ones before

    def __len__(self) -> int:
        return len(self.sizes)


def encode(images: Iterable[np.ndarray], fps: float, codec: Codec, keyframe_interval: int) -> StoredVideo:
    """Encodes uint8 [H,W,3] images as they come; the same images give the same bytes.

    Args:
      images: all of one size; H and W even for 'h264'.
      fps: frames per second, told to the rate control.
      codec: 'h264' is lossy (CRF 20, 4:2:0), 'lossless' exact.
      keyframe_interval: frames from one keyframe to the next.
    """
    encoder, packets = None, []
    for image in images:
        if encoder is None:
            encoder = _encoder(image.shape, fps, codec, keyframe_interval)
        picture = av.VideoFrame.from_ndarray(image, 'rgb24')
        packets += encoder.encode(picture)
    packets += encoder.encode(None) if encoder else []
    contents = [bytes(packet) for packet in packets]
    return StoredVideo(b''.join(contents), np.asarray([len(c) for c in contents], np.int32), keyframe_interval)


def cut(video: StoredVideo, start: int, end: int) -> StoredVideo:
    """Return frames [start, end) without encoding them again; `start` must be a keyframe."""
    ends = np.concatenate([[0], np.cumsum(video.sizes, dtype=np.int64)])
    return StoredVideo(video.stream[ends[start] : ends[end]], video.sizes[start:end], video.keyframe_interval)


def describe_encoder(codec: Codec) -> str:
    """All that the bytes of a video depend on, apart from its images: other versions of x264 give others."""
    name, pixels, options = _ENCODERS[codec]
    return f'{name} {pixels} {" ".join(f"{key}={value}" for key, value in options.items())}, av {av.__version__}'


def read(video: StoredVideo, indices: Sequence[int], height: int, width: int) -> np.ndarray:
    """The frames at `indices`, uint8 [len(indices),height,width,3]; decodes from the keyframes before them.

    Scaled to cover (height, width) and cropped at the centre when the video is of another size.

    Raises:
      VideoError: the bytes cannot be decoded.
    """
    wanted = sorted(set(map(int, indices)))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(video):
        raise IndexError(f'frames {wanted[0]}..{wanted[-1]} of a video of {len(video)}')
    # A decoder of its own, though making it takes as long as a frame: one that had a video before keeps its colours.
    decoder, scaler = _decoder(), VideoReformatter()
    ends = np.cumsum(video.sizes, dtype=np.int64)
    data, found = memoryview(video.stream), {}
    position = 0  # the next packet that the decoder would take
    for index in wanted:
        keyframe = index - index % video.keyframe_interval
        if keyframe >= position:
            decoder.flush_buffers()
            position = keyframe
        for packet in range(position, index + 1):
            frame = _decode(decoder, data[ends[packet] - video.sizes[packet] : ends[packet]], packet)
        position = index + 1
        found[index] = to_array(frame, 1.0, scaler, height, width)
    return np.stack([found[int(index)] for index in indices])


def _decoder() -> av.VideoCodecContext:
    decoder = av.CodecContext.create('h264', 'r')
    decoder.thread_count = 1
    decoder.flags |= av.codec.context.Flags.low_delay  # a frame comes out for each packet that goes in
    return decoder


def _decode(decoder: av.VideoCodecContext, content: memoryview, number: int) -> av.VideoFrame:
    try:
        frames = decoder.decode(av.Packet(content))
    except av.FFmpegError as error:
        raise VideoError(f'packet {number} of a stored video cannot be decoded: {error.strerror}') from error
    if len(frames) != 1 or frames[0].is_corrupt:
        raise VideoError(f'packet {number} of a stored video is damaged')
    return frames[0]


def _encoder(shape: tuple[int, ...], fps: float, codec: Codec, keyframe_interval: int) -> av.VideoCodecContext:
    name, pixels, options = _ENCODERS[codec]
    encoder = av.CodecContext.create(name, 'w')
    encoder.height, encoder.width = shape[:2]
    encoder.pix_fmt, encoder.framerate = pixels, Fraction(fps).limit_denominator(1001)
    encoder.time_base = 1 / encoder.framerate
    encoder.gop_size, encoder.max_b_frames = keyframe_interval, 0
    encoder.thread_count = 1  # one file per process, and the bytes must not depend on the machine's cores
    # Keyframes at scene cuts as well would break the arithmetic that finds the keyframe before a frame. The macroblock
    # tree makes other bytes now and then when frames are small (seen at 32 and 48 pixels), and gains little here.
    fixed = f'keyint={keyframe_interval}:min-keyint=1:scenecut=0:open-gop=0:mbtree=0:rc-lookahead=0'
    encoder.options = {**options, 'x264-params': fixed}
    return encoder
