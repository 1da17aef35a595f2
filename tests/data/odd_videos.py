"""Good files that are harder to read than they look: no presentation times, held pictures, covers, orientations."""

import io
import pathlib
import struct
import tempfile
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests.data.video_kinds import FPS, SECONDS, encode, moving

VOP = b'\0\0\1\xb6'  # start of an MPEG-4 picture; the two bits after it are its type
NOT_CODED = VOP + b'\x50\x9f'  # an MPEG-4 picture that repeats the one before, at 12 per second
ORIENTATIONS = {  # display matrix (a, b, c, d) -> how NumPy makes the stored picture upright
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): np.rot90,
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


def write(container, codec, arrange, frames=SECONDS * FPS, **fields):
    """The bytes of a file; `arrange` makes (content, time, duration) packets of the encoded frames, times in frames."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, 'w', format=container) as output:
            stream = output.add_stream(codec, rate=FPS)
            stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
            for key, value in fields.items():
                setattr(stream.codec_context, key, value)
            images = [av.VideoFrame.from_ndarray(image, 'rgb24') for image in moving(frames)]
            encoded = [bytes(packet) for image in [*images, None] for packet in stream.encode(image)]
            for number, (content, time, duration) in enumerate(arrange(encoded)):
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, FPS), not number
                packet.pts = packet.dts = time
                packet.duration = duration
                output.mux(packet)
        return pathlib.Path(file.name).read_bytes()


def avi_mpeg4(frames, b_frames, packed, not_coded_at_the_end=0):
    """MPEG-4 in AVI; packed: a B-frame shares the chunk of the frame before it, and a repeat fills its place."""

    def arrange(pictures):
        chunks, pending = [], 0
        for picture in pictures:
            is_b = picture[picture.index(VOP) + 4] >> 6 == 2
            if packed and pending and not is_b:
                chunks.append(NOT_CODED)
                pending = 0
            if packed and is_b and not pending:
                chunks[-1] += picture
                pending = 1
            else:
                chunks.append(picture)
        chunks += [NOT_CODED] * (pending + not_coded_at_the_end)
        if packed:
            chunks[0] = chunks[0].replace(VOP, b'\0\0\1\xb2DivX503b1393p' + VOP, 1)  # how decoders know
        return [(chunk, number, 1) for number, chunk in enumerate(chunks)]

    # Bit-exact, because decoders do not expect packed frames of an encoder that signs as libavcodec.
    return write('avi', 'mpeg4', arrange, frames, max_b_frames=b_frames, flags=av.codec.context.Flags.bitexact)


def avi_of_another_rate(codec, ticks, rate):
    """12 frames a second in an AVI that states `rate` chunks a second, most of them empty: a remuxed mp4."""
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='avi') as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        stream.codec_context.max_b_frames = 2
        for number, image in enumerate(moving()):
            frame = av.VideoFrame.from_ndarray(image, 'rgb24')
            frame.pts, frame.time_base = ticks * number, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def without_presentation_times():
    """{name: (content, frames)} of 12 frames a second."""
    return {
        'packed_odd.avi': (avi_mpeg4(25, 1, True), 25),
        'packed_even.avi': (avi_mpeg4(24, 1, True), 24),
        'packed_two_b.avi': (avi_mpeg4(24, 2, True), 24),
        'packed_end.avi': (avi_mpeg4(24, 1, True, 1), 24),
        'unpacked.avi': (avi_mpeg4(24, 2, False), 24),
        'repeated_end.avi': (avi_mpeg4(24, 0, False, 1), 24),
        'x264.avi': (encode('libx264', 'avi'), 24),
        'x264_no_b.avi': (encode('libx264', 'avi', max_b_frames=0), 24),
        'x264_pyramid.avi': (
            encode('libx264', 'avi', options={'bf': '8', 'b_strategy': '0', 'b-pyramid': 'strict'}),
            24,
        ),
        'remuxed_24.avi': (avi_of_another_rate('libx264', 2, 24), 24),
        'remuxed_600.avi': (avi_of_another_rate('libx264', 50, 600), 24),
        'remuxed_mpeg4.avi': (avi_of_another_rate('mpeg4', 2, 24), 24),
        'raw.m4v': (encode('mpeg4', 'm4v', max_b_frames=2), 24),
    }


def joined():
    """{name: (content, frames)} of files put one after another: times start again in the middle."""
    ts, ps = encode('libx264', 'mpegts'), encode('mpeg2video', 'mpeg', fps=25, max_b_frames=2)
    return {'joined.ts': (ts + ts, 48), 'joined.mpg': (ps + ps, 48)}


def held(seconds):
    """{name: content}: 24 frames at 12 per second, the last of which stays for so many seconds."""
    files = {}

    def arrange(pictures):
        times = [(picture, number, 1) for number, picture in enumerate(pictures)]
        return [*times[:-1], (*times[-1][:2], seconds * FPS)]

    for name, container, codec in (
        ('held.mp4', 'mp4', 'libx264'),
        ('held.mov', 'mov', 'mpeg4'),
        ('held.webm', 'webm', 'libvpx'),
        ('held.mkv', 'matroska', 'mpeg4'),
    ):
        files[name] = write(container, codec, arrange, max_b_frames=0)
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, moving())
    durations = [80] * (len(others)) + [1000 * seconds]
    first.save(buffer, format='GIF', save_all=True, append_images=others, duration=durations)
    return files | {'held.gif': buffer.getvalue(), 'held.avi': avi_mpeg4(24, 0, False, seconds * FPS)}


def box(name, *parts):
    content = b''.join(parts)
    return struct.pack('>I4s', 8 + len(content), name) + content


def jpeg(size=200):
    buffer = io.BytesIO()
    Image.new('RGB', (size, size), (10, 200, 30)).save(buffer, format='JPEG')
    return buffer.getvalue()


def with_cover(mp4, first):
    """An mp4 whose index is at its end, with a cover picture before or after its track."""
    image = box(b'covr', box(b'data', struct.pack('>II', 13, 0), jpeg()))
    handler = box(b'hdlr', bytes(8), b'mdirappl', bytes(9))
    cover = box(b'udta', box(b'meta', bytes(4), handler, box(b'ilst', image)))
    moov = mp4.rindex(b'moov') - 4
    size = struct.unpack('>I', mp4[moov : moov + 4])[0]
    place = moov + 8 + struct.unpack('>I', mp4[moov + 8 : moov + 12])[0] if first else moov + size
    head = mp4[:moov] + struct.pack('>I', size + len(cover)) + mp4[moov + 4 : place]
    return head + cover + mp4[place:]


def several_streams(container, kinds, codec='libx264'):
    """A file with these streams: video, small (a video), picture (a larger track of one frame), cover, text."""
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format=container) as output:
        streams = []
        for kind in kinds:
            if kind == 'cover':
                output.add_attachment('cover.jpg', 'image/jpeg', jpeg())
            elif kind == 'text':
                streams.append((kind, output.add_mux_stream('subrip')))
            elif kind == 'picture':
                stream = output.add_stream('mjpeg', rate=FPS)
                stream.height, stream.width, stream.pix_fmt = 200, 200, 'yuvj420p'
                streams.append((kind, stream))
            else:
                stream = output.add_stream(codec, rate=FPS)
                side = 1 if kind == 'video' else 2
                stream.height, stream.width, stream.pix_fmt = 48 // side, 64 // side, 'yuv420p'
                streams.append((kind, stream))
        for kind, stream in streams:
            if kind == 'text':
                packet = av.Packet(b'words')
                packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 12
                packet.time_base = Fraction(1, FPS)
                output.mux(packet)
                continue
            video = {
                'video': moving(),
                'small': moving()[::-1, ::2, ::2],
                'picture': np.zeros((1, 200, 200, 3), np.uint8),
            }
            for image in video[kind]:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')))
            output.mux(stream.encode(None))
    return buffer.getvalue()


def oriented(matrix, container='mp4'):
    """A video whose track header has the display matrix (a, b, c, d)."""
    content = bytearray(encode('libx264', container))
    start = content.index(b'tkhd') + 4 + 40  # version, flags and the other fields of a version 0 header
    a, b, c, d = ((1 << 16) * value for value in matrix)
    content[start : start + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(content)
