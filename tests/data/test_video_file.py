"""Video files: round loop_count, exact frames, and one clear line for every bad file."""

import resource
from fractions import Fraction

import av
import numpy as np
import pytest

from magi_jax.data import video_file


def moving_square(frames=11, height=48, width=64):
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for t in range(frames):
        video[t, 12:28, 2 * t : 2 * t + 16] = (220, 120, 60)
    return video


def psnr(a, b):
    return 10 * np.log10(255**2 / (np.mean((a.astype(float) - b.astype(float)) ** 2) + 1e-6))


@pytest.mark.parametrize('fps', [8, 29.97])
def test_mp4_round_trip(tmp_path, fps):
    video = moving_square()
    video_file.write_mp4(tmp_path / 'a.mp4', video, fps)
    back = video_file.read_video(tmp_path / 'a.mp4')
    assert back.shape == video.shape and back.dtype == np.uint8
    assert psnr(back, video) > 30
    assert psnr(back[1:], video[:-1]) < 25  # frames are in their places
    assert len(video_file.read_video(tmp_path / 'a.mp4', max_frames=4)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_gif_round_trip_is_exact_on_few_colours(tmp_path):
    video = moving_square()
    video_file.write_gif(tmp_path / 'a.gif', video, 10)
    np.testing.assert_array_equal(video_file.read_video(tmp_path / 'a.gif'), video)


def test_odd_sizes_are_padded(tmp_path):
    video_file.write_mp4(tmp_path / 'a.mp4', moving_square(3, 37, 41), 8)
    assert video_file.read_video(tmp_path / 'a.mp4').shape == (3, 38, 42, 3)


def test_frames_at_indices_are_those_of_the_whole_video(tmp_path):
    video_file.write_mp4(tmp_path / 'a.mp4', moving_square(13), 8)
    whole = video_file.read_video(tmp_path / 'a.mp4', 24, 24)
    picked = video_file.read_frames(tmp_path / 'a.mp4', [9, 2, 5], 24, 24)
    np.testing.assert_array_equal(picked, whole[[9, 2, 5]])
    with pytest.raises(video_file.VideoError, match='no frame 13'):
        video_file.read_frames(tmp_path / 'a.mp4', [13], 24, 24)


def test_scaling_covers_and_crops_the_centre():
    video = np.zeros((1, 40, 80, 3), np.uint8)
    video[:, :, 20:60] = 200  # exactly the centre square
    small = video_file.fit(video, 20, 20)
    assert small.shape == (1, 20, 20, 3)
    assert small[:, :, 1:-1].min() > 190
    assert video_file.fit(video, 10, 20)[0, :, 0].max() < 10  # the whole width
    assert video_file.fit(video, 80, 160).shape == (1, 80, 160, 3)


def test_bad_files_are_named_in_one_line(tmp_path):
    (tmp_path / 'empty.mp4').write_bytes(b'')
    (tmp_path / 'text.mp4').write_bytes(b'no video ' * 99)
    video_file.write_mp4(tmp_path / 'good.mp4', moving_square(), 8)
    content = (tmp_path / 'good.mp4').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(content[: len(content) // 2])
    with av.open(str(tmp_path / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    reasons = {
        'empty.mp4': 'is empty',
        'text.mp4': 'cannot be decoded',
        'cut.mp4': 'cannot be decoded',
        'sound.mp4': 'no video stream',
    }
    for name, reason in reasons.items():
        with pytest.raises(video_file.VideoError, match=rf'{name}.*{reason}') as error:
            video_file.read_video(tmp_path / name)
        assert '\n' not in str(error.value)
    with pytest.raises(FileNotFoundError, match='missing.mp4'):
        video_file.read_video(tmp_path / 'missing.mp4')


def test_truncated_avi_is_an_error(tmp_path):
    with av.open(str(tmp_path / 'a.avi'), 'w') as container:
        stream = container.add_stream('mpeg4', rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
        container.mux(stream.encode(None))
    assert video_file.count_frames(tmp_path / 'a.avi') == 12
    content = (tmp_path / 'a.avi').read_bytes()
    (tmp_path / 'cut.avi').write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(video_file.VideoError, match='damaged or cut off'):
        video_file.count_frames(tmp_path / 'cut.avi')


@pytest.mark.parametrize('write', [video_file.write_mp4, video_file.write_gif])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, write):
    target = tmp_path / 'out.video'
    target.write_bytes(b'old')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(OSError, match='cannot write .*out.video'):
            write(target, moving_square(), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [target]


def test_writing_rejects_what_is_no_video(tmp_path):
    with pytest.raises(ValueError, match='float32'):
        video_file.write_mp4(tmp_path / 'a.mp4', np.zeros((2, 8, 8, 3), np.float32), 8)
    with pytest.raises(FileNotFoundError, match='no folder'):
        video_file.write_gif(tmp_path / 'nowhere' / 'a.gif', moving_square(), 8)


def test_frame_by_frame_is_the_same_file_and_an_error_leaves_none(tmp_path):
    video = moving_square()
    video_file.write_mp4(tmp_path / 'whole.mp4', video, 8)
    with video_file.mp4_writer(tmp_path / 'frames.mp4', 8) as write:
        for number, image in enumerate(video):
            write(image)
            assert number or not (tmp_path / 'frames.mp4').exists()
    assert (tmp_path / 'frames.mp4').read_bytes() == (tmp_path / 'whole.mp4').read_bytes()
    for images in ([], [video[0], video[0, :8]], [video[0], video]):
        with pytest.raises(ValueError, match='frame|video'), video_file.mp4_writer(tmp_path / 'no.mp4', 8) as write:
            for image in images:
                write(image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frames.mp4', 'whole.mp4']


def test_pixels_that_are_not_square_are_undone(tmp_path):
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 32, 'yuv420p'
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)  # shown 64 wide
        image = np.zeros((48, 32, 3), np.uint8)
        image[:, 4:28] = 200  # shown 8..56: the centre square
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
        container.mux(stream.encode(None))
    assert video_file.read_video(tmp_path / 'a.mp4').shape == (1, 48, 32, 3)
    square = video_file.read_video(tmp_path / 'a.mp4', 48, 48)
    assert square[:, :, 2:-2].min() > 180
    whole = video_file.read_video(tmp_path / 'a.mp4', 48, 64)[0, 24, :, 0]
    assert whole[:6].max() < 20 and whole[10:54].min() > 180 and whole[58:].max() < 20
