"""Real-format video files, good and broken, made with PyAV: what a folder from the wild holds."""

import io
import pathlib
import struct
import tempfile
from fractions import Fraction

import av
import numpy as np

from magi_jax.data import video_file

SECONDS, FPS = 2, 12


def moving(frames=SECONDS * FPS, height=48, width=64):
    """A bright square that moves to the right over noise, uint8 [T,H,W,3]."""
    noise = np.random.default_rng(frames * height).integers(20, 60, (height, width, 3), np.uint8)
    video = np.repeat(noise[None], frames, 0)
    for t in range(frames):
        left = t * (width - 16) // max(1, frames - 1)
        video[t, 8:24, left : left + 16] = (240, 130, 40)
    return video


def encode(codec, container, video=None, *, fps=FPS, pixels='yuv420p', options=None, times=None, **fields):
    """The bytes of a file; `times` are presentation times in milliseconds, `fields` are set on the codec context."""
    video = moving() if video is None else video
    muxer = {'movflags': '+faststart'} if fields.pop('faststart', False) else {}
    with tempfile.NamedTemporaryFile() as file:  # the index of an mp4 is moved to its front in a second pass
        with av.open(file.name, 'w', format=container, options=muxer) as output:
            _encode_into(output, codec, video, fps, pixels, options, times, fields)
        return pathlib.Path(file.name).read_bytes()


def _encode_into(output, codec, video, fps, pixels, options, times, fields):
    stream = output.add_stream(codec, rate=fps, options=options or {})
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = pixels
    for key, value in fields.items():
        setattr(stream.codec_context, key, value)
    if times is not None:
        stream.codec_context.time_base = Fraction(1, 1000)
    for number, image in enumerate(video):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')
        if times is not None:
            frame.pts, frame.time_base = int(times[number]), Fraction(1, 1000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def sound(container):
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format=container) as output:
        stream = output.add_stream('aac', rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        samples.sample_rate = 8000
        output.mux(stream.encode(samples))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def turned(content, turns):
    """An mp4 with a rotation by `turns` quarter turns in its track header, as phones write it."""
    content = bytearray(content)
    start = content.index(b'tkhd') + 4 + 40
    one = 1 << 16
    a, b = {1: (0, -one), 2: (-one, 0), 3: (0, one)}[turns]
    content[start : start + 36] = struct.pack('>9i', a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    return bytes(content)


def cut_without_decoding(content, start):
    """An mp4 from time `start` on, packets copied: an edit list hides those before it that the decoder needs."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(buffer, 'w', format='mp4') as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        shift = int(start / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                output.mux(packet)
    return buffer.getvalue()


def scrambled(content, where, length):
    """Bytes from part `where` of the file on replaced by noise."""
    content, start = bytearray(content), int(len(content) * where)
    content[start : start + length] = np.random.default_rng(5).bytes(length)
    return bytes(content)


def good_files():
    """{name: (content, frames that a constant rate makes of it)}."""
    whole = SECONDS * FPS
    times = np.cumsum([0, *([40] * 8), *([200] * 6), *([83] * 9)])  # 24 frames in 2.27 s: about 10.6 a second
    files = {
        'h264.mp4': (encode('libx264', 'mp4'), whole),
        'h264_b_frames.mp4': (encode('libx264', 'mp4', gop_size=250, max_b_frames=3), whole),
        'faststart.mp4': (encode('libx264', 'mp4', faststart=True), whole),
        'vp9.webm': (encode('libvpx-vp9', 'webm', options={'cpu-used': '8', 'deadline': 'realtime'}), whole),
        'vp8.webm': (encode('libvpx', 'webm', options={'cpu-used': '8', 'deadline': 'realtime'}), whole),
        'mpeg4.avi': (encode('mpeg4', 'avi'), whole),
        'xvid_b_frames.avi': (encode('mpeg4', 'avi', max_b_frames=2), whole),
        'mjpeg.avi': (encode('mjpeg', 'avi', pixels='yuvj420p'), whole),
        'prores.mov': (encode('prores_ks', 'mov', pixels='yuv422p10le'), whole),
        'h264.mkv': (encode('libx264', 'matroska'), whole),
        'ffv1.mkv': (encode('ffv1', 'matroska', pixels='bgr0'), whole),
        'mpeg2.mpg': (encode('mpeg2video', 'mpeg', fps=25), whole),
        'h264.ts': (encode('libx264', 'mpegts'), whole),
        'flv1.flv': (encode('flv', 'flv'), whole),
        'wmv2.wmv': (encode('wmv2', 'asf'), whole),
        'hevc_10_bit.mp4': (
            encode('libx265', 'mp4', pixels='yuv420p10le', options={'x265-params': 'log-level=0'}),
            whole,
        ),
        'gray.mp4': (encode('libx264', 'mp4', pixels='gray'), whole),
        'odd_size.mkv': (encode('ffv1', 'matroska', moving(height=47, width=63), pixels='bgr0'), whole),
        'portrait.m4v': (encode('libx264', 'mp4', moving(height=96, width=54)), whole),
        'turned.mov': (turned(encode('libx264', 'mov'), 1), whole),
        'wide_pixels.mp4': (encode('libx264', 'mp4', sample_aspect_ratio=Fraction(4, 3)), whole),
        'ntsc.mp4': (encode('libx264', 'mp4', fps=Fraction(30000, 1001)), whole),
        'variable_rate.mp4': (encode('libx264', 'mp4', times=times), None),
        'variable_rate.webm': (encode('libvpx', 'webm', times=times + 700), None),
        'cut_copy.mp4': (cut_without_decoding(encode('libx264', 'mp4', gop_size=250), 0.25), None),
    }
    return files | {'moving.gif': (video_file.encode_gif(moving(), 10), None)}


def broken_files():
    """{name: (content, reason that it is skipped for)}."""
    mp4 = encode('libx264', 'mp4')
    noise = np.random.default_rng(1).integers(0, 255, (24, 48, 64, 3), np.uint8)  # large files: cuts hit the frames
    fast = encode('libx264', 'mp4', noise, faststart=True)
    sharp = encode('libx264', 'mp4', faststart=True, options={'crf': '1'})
    avi, webm = encode('mpeg4', 'avi', noise), encode('libvpx', 'webm', noise)
    long_gap = [*range(0, 960, 80), *range(60_000, 60_960, 80)]
    return {
        'empty.mp4': (b'', 'empty'),
        'text.mp4': (b'this is not a video\n' * 40, 'not_a_video'),
        'random.avi': (np.random.default_rng(0).bytes(9000), 'not_a_video'),
        'cut_before_index.mp4': (mp4[: len(mp4) // 2], 'not_a_video'),
        'sound.mp4': (sound('mp4'), 'no_video_stream'),
        'cut_after_index.mp4': (fast[: int(len(fast) * 0.7)], 'corrupt'),
        'damaged.mp4': (scrambled(sharp, 0.5, 600), 'corrupt'),
        'cut.avi': (avi[: int(len(avi) * 0.6)], 'corrupt'),
        'damaged.avi': (scrambled(avi, 0.4, 1500), 'corrupt'),
        'cut.webm': (webm[: int(len(webm) * 0.5)], 'truncated'),
        'three_frames.mp4': (encode('libx264', 'mp4', moving(3)), 'too_short'),
        'picture.gif': (video_file.encode_gif(moving(1), 10), 'too_short'),
        'gap.mkv': (encode('libx264', 'matroska', times=long_gap), 'bad_timestamps'),
        'unknown_codec.mp4': (mp4.replace(b'avc1', b'zzzz').replace(b'avcC', b'zzzC'), 'unsupported_codec'),
    }
