"""The storage format of videos in a prepared dataset: concatenated H.264 packets with regular keyframes.

The bytes are a plain H.264 elementary stream (`ffplay -f h264` plays it). It has no B-frames, so packet i is frame i.
It has no container, so opening it costs nothing. Frame i needs the packets from the last keyframe on, and the packet
sizes locate them.

Dimension key: T frames, H rows, W columns.
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
    # RGB without colour subsampling, because subsampled colours bleed over the hard edges of synthetic videos.
    'lossless': ('libx264rgb', 'rgb24', {'crf': '0', 'preset': 'veryfast'}),
}


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """An encoded video."""

    stream: bytes  # all packets
    sizes: np.ndarray  # int32 [T], bytes of each packet
    keyframe_interval: int  # k: frames 0, k, 2k, ... are keyframes

    def __len__(self) -> int:
        return len(self.sizes)


def encode(images: Iterable[np.ndarray], fps: float, codec: Codec, keyframe_interval: int) -> StoredVideo:
    """Encode uint8 [H,W,3] images in order. Equal images give equal bytes.

    Args:
      images: images of one size. H and W must be even for 'h264'.
      fps: frames per second, used by the rate control.
      codec: 'h264' (lossy, CRF 20, 4:2:0) or 'lossless'.
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
    """Return everything besides the images that determines the bytes, including the versions of PyAV and its x264."""
    name, pixels, options = _ENCODERS[codec]
    return f'{name} {pixels} {" ".join(f"{key}={value}" for key, value in options.items())}, av {av.__version__}'


def read(video: StoredVideo, indices: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode the frames at `indices`, uint8 [len(indices),height,width,3], from the keyframes before them.

    A video of another size is scaled to cover (height, width) and cropped at the centre.

    Raises:
      VideoError: the bytes cannot be decoded.
    """
    unique_indices = sorted(set(map(int, indices)))
    if unique_indices and not 0 <= unique_indices[0] <= unique_indices[-1] < len(video):
        first, last = unique_indices[0], unique_indices[-1]
        raise IndexError(f'frames {first}..{last} requested: the video has {len(video)} frames')
    # A new decoder for each video, although creating it takes as long as a frame: a reused decoder keeps the colour
    # settings of the previous video.
    decoder, scaler = _decoder(), VideoReformatter()
    ends = np.cumsum(video.sizes, dtype=np.int64)
    data, found = memoryview(video.stream), {}
    position = 0  # the next packet that the decoder would take
    for index in unique_indices:
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
    decoder.flags |= av.codec.context.Flags.low_delay  # the decoder returns one frame for each packet
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
    encoder.thread_count = 1  # so that the bytes do not depend on the number of cores
    # No extra keyframes at scene cuts: `read` computes the position of keyframes. No macroblock tree: on small frames
    # (seen at 32 and 48 pixels) it sometimes gives other bytes, and it gains little here.
    fixed = f'keyint={keyframe_interval}:min-keyint=1:scenecut=0:open-gop=0:mbtree=0:rc-lookahead=0'
    encoder.options = {**options, 'x264-params': fixed}
    return encoder
