"""Files that are harder to read than they look: a folder of videos and the preparation get the same frames of them."""

import dataclasses
import errno
import json
import math
import os

import av
import numpy as np
import pytest
from PIL import Image

from magi_jax.data import decoding, stored_video, video_file
from magi_jax.data.preparation import containers
from magi_jax.data.preparation.reencode import Prepared, Settings, reencode_file
from tests.data import odd_videos, video_kinds

EXACT = Settings(height=48, width=64, codec='lossless', min_frames=1)


def columns(video):
    """Where the orange square is in each frame, as a part of the width."""
    masks = (video[..., 0].astype(int) - video[..., 2]) > 70
    return np.asarray([np.nonzero(mask)[1].mean() for mask in masks]) / video.shape[2]


def read_both_ways(path, settings=EXACT):
    """The frames that a folder of videos gives and those that the preparation stores, which must have worked."""
    result = reencode_file(path, settings)
    assert isinstance(result, Prepared), (path.name, result)
    stored = stored_video.read(result.video, range(len(result.video)), settings.height, settings.width)
    return video_file.read_video(path, settings.height, settings.width), stored, result.fps


def assert_moves_right(video, name):
    steps = np.diff(columns(video))
    assert steps.min() > 0.003 and steps.max() < 0.15, (name, steps)


def test_files_without_presentation_times_give_all_frames_in_display_order_at_their_true_rate(tmp_path):
    files = odd_videos.without_presentation_times()
    for name, (content, frames) in files.items():
        (tmp_path / name).write_bytes(content)
        video, stored, fps = read_both_ways(tmp_path / name)
        assert len(video) == frames and fps == pytest.approx(12), (name, len(video), fps)
        assert_moves_right(video, name)
        np.testing.assert_array_equal(stored, video, name)
        assert video_file.count_frames(tmp_path / name) == frames
        picked = video_file.read_frames(tmp_path / name, [frames - 1, 3], 48, 64)
        np.testing.assert_array_equal(picked, video[[frames - 1, 3]])


def test_files_that_were_joined_go_on_where_their_times_start_again(tmp_path):
    for name, (content, frames) in odd_videos.joined().items():
        (tmp_path / name).write_bytes(content)
        video, stored, _ = read_both_ways(tmp_path / name)
        assert len(video) == frames, name
        np.testing.assert_array_equal(stored, video, name)


@pytest.mark.parametrize('seconds', [2, 60])
def test_a_last_picture_that_is_held_is_neither_truncated_nor_slows_the_rest(tmp_path, seconds):
    for name, content in odd_videos.held(seconds).items():
        (tmp_path / name).write_bytes(content)
        video, stored, fps = read_both_ways(tmp_path / name)
        assert len(video) == 24 and fps == pytest.approx(12.5 if name.endswith('gif') else 12, rel=0.01), (name, fps)
        np.testing.assert_array_equal(stored[:24], video, name)
        if name.endswith(('gif', 'mp4', 'mov')):  # which state how long; 10 seconds of it are stored at most
            assert len(stored) - 23 == pytest.approx(fps * min(seconds, 10), abs=1), name
        assert np.all(stored[24:] == video[-1]), name


def test_a_slide_show_of_long_pictures_is_no_broken_clock(tmp_path):
    content = video_kinds.encode('libx264', 'mp4', times=range(0, 24 * 15_000, 15_000))
    (tmp_path / 'slides.mp4').write_bytes(content)
    video, stored, fps = read_both_ways(tmp_path / 'slides.mp4')
    assert fps == pytest.approx(1 / 15, rel=0.1) and len(video) == 24 <= len(stored) <= 26


def test_a_picture_that_is_held_in_the_middle_is_no_broken_clock_and_not_stored_for_a_minute(tmp_path):
    first, *others = map(Image.fromarray, video_kinds.moving())
    durations = [100] * 11 + [60_000] + [100] * 12
    first.save(tmp_path / 'a.gif', save_all=True, append_images=others, duration=durations)
    settings = dataclasses.replace(EXACT, fps=10)
    video, stored, _ = read_both_ways(tmp_path / 'a.gif', settings)
    assert len(video) == 24 and 11 + 100 + 12 <= len(stored) <= 11 + 300 + 12
    np.testing.assert_array_equal(stored[[*range(12), *range(-12, 0)]], video)


def test_a_file_cut_between_two_frames_is_truncated_though_all_of_them_decode(tmp_path):
    avi = odd_videos.avi_mpeg4(24, 0, False)
    webm = odd_videos.held(2)['held.webm']
    for name, content in (
        ('cut.avi', avi[: avi.rindex(b'00dc', 0, avi.rindex(b'idx1') - 800)]),
        ('cut.webm', webm[:-900]),
    ):
        (tmp_path / name).write_bytes(content)
        assert 0 < video_file.count_frames(tmp_path / name) < 24
        assert reencode_file(tmp_path / name, EXACT).reason == 'truncated', name


def test_whole_files_are_known_by_their_first_bytes(tmp_path):
    for codec, container in (('mpeg4', 'avi'), ('mpeg4', 'matroska'), ('libvpx', 'webm')):
        content = video_kinds.encode(codec, container)
        (tmp_path / 'a').write_bytes(content)
        assert containers.is_complete(tmp_path / 'a'), container
        (tmp_path / 'a').write_bytes(content + content if container == 'avi' else content + b'junk')
        assert containers.is_complete(tmp_path / 'a'), container
        for end in (len(content) - 1, 300, 9, 4, 1):
            (tmp_path / 'a').write_bytes(content[:end])
            assert not containers.is_complete(tmp_path / 'a'), (container, end)
    size = content.index(bytes.fromhex('18538067')) + 4
    (tmp_path / 'a').write_bytes(content[:size] + b'\x01' + b'\xff' * 7 + content[size + 8 :])  # a live stream
    assert not containers.is_complete(tmp_path / 'a')


def test_pictures_and_other_tracks_are_never_the_video(tmp_path):
    mp4 = video_kinds.encode('libx264', 'mp4')
    files = {
        'cover_first.mp4': odd_videos.with_cover(mp4, True),
        'cover_last.m4v': odd_videos.with_cover(mp4, False),
        'picture_first.mp4': odd_videos.several_streams('mp4', ('picture', 'video')),
        'picture_last.mov': odd_videos.several_streams('mov', ('video', 'picture')),
        'cover_first.mkv': odd_videos.several_streams('matroska', ('cover', 'video')),
        'cover_last.mkv': odd_videos.several_streams('matroska', ('video', 'cover')),
        'text_first.mkv': odd_videos.several_streams('matroska', ('text', 'video')),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        video, stored, _ = read_both_ways(tmp_path / name)
        assert len(video) == 24, name
        assert_moves_right(video, name)
        np.testing.assert_array_equal(stored, video, name)


def test_the_default_track_wins_over_a_larger_one(tmp_path):
    content = bytearray(odd_videos.several_streams('mp4', ('video', 'small')))
    first = content.index(b'tkhd')
    for place, enabled in ((first, 0), (content.index(b'tkhd', first + 4), 1)):
        content[place + 7] = content[place + 7] & ~1 | enabled
    (tmp_path / 'a.mp4').write_bytes(content)
    video, stored, _ = read_both_ways(tmp_path / 'a.mp4')
    assert columns(video)[0] > 0.8 > 0.2 > columns(video)[-1]  # the small one moves to the left
    np.testing.assert_array_equal(stored, video)


def test_a_file_with_nothing_but_a_cover_has_no_video(tmp_path):
    (tmp_path / 'a.mkv').write_bytes(odd_videos.several_streams('matroska', ('text', 'cover')))
    with pytest.raises(video_file.VideoError, match='a.mkv: has no video stream, only cover pictures'):
        video_file.read_video(tmp_path / 'a.mkv')
    assert reencode_file(tmp_path / 'a.mkv', EXACT).reason == 'no_video_stream'


@pytest.mark.parametrize('matrix', odd_videos.ORIENTATIONS)
def test_all_eight_display_matrices_are_undone(tmp_path, matrix):
    (tmp_path / 'plain.mp4').write_bytes(odd_videos.oriented((1, 0, 0, 1)))
    (tmp_path / 'turned.mov').write_bytes(odd_videos.oriented(matrix, 'mov'))
    plain = video_file.read_video(tmp_path / 'plain.mp4')
    expected = np.stack([odd_videos.ORIENTATIONS[matrix](image) for image in plain])
    np.testing.assert_array_equal(video_file.read_video(tmp_path / 'turned.mov'), expected)
    height, width = expected.shape[1:3]
    video, stored, _ = read_both_ways(
        tmp_path / 'turned.mov', Settings(height=height, width=width, codec='lossless', min_frames=1)
    )
    np.testing.assert_array_equal(video, expected)
    np.testing.assert_array_equal(stored, expected)


def test_damaged_metadata_changes_nothing(tmp_path):
    good = video_kinds.encode('libx264', 'matroska')
    tag = good.index(b'00:00:02')
    files = {'plain.mkv': good}
    for number, text in enumerate((b'N/A     ', b'1:2     ', b'\xff\xfe\xe9:::::', b'-1e99:nan'[:8])):
        files[f'{number}.mkv'] = good[:tag] + text + good[tag + 8 :]
    mp4 = video_kinds.encode('libx264', 'mp4')
    files['handler.mp4'] = mp4.replace(b'VideoHandler', b'\xff\xfe\xe9\x80oHandler')
    files['matrix.mp4'] = odd_videos.oriented((0, 0, 0, 0))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        video, stored, fps = read_both_ways(tmp_path / name)
        assert fps == 12, name
        np.testing.assert_array_equal(stored, video, name)
        assert_moves_right(video, name)


def test_names_are_bytes(tmp_path, monkeypatch):
    content = video_kinds.encode('libx264', 'mp4')
    monkeypatch.chdir(tmp_path)
    names = [b'a:b.mp4', b'http:c.mp4', b'caf\xe9.mp4', b'a%03d.mp4', b'-x.mp4', 'ж?#.mp4'.encode()]
    for name in map(os.fsdecode, names):
        with open(name, 'wb') as file:
            file.write(content)
        assert len(video_file.read_video(name)) == video_file.count_frames(os.fsencode(name)) == 24
        assert isinstance(reencode_file(name, EXACT), Prepared)
        with open(name, 'wb') as file:
            file.write(b'no video')
        with pytest.raises(video_file.VideoError) as error:
            video_file.read_video(name)
        assert str(error.value).encode().decode().startswith(decoding.file_text(name))
    assert decoding.file_text(os.fsdecode(b'a\\caf\xe9.mp4')) == r'a\\caf\xe9.mp4'
    assert decoding.file_text('a\\é.mp4') == 'a\\é.mp4'
    assert json.loads(json.dumps(decoding.file_text(b'\xff'), ensure_ascii=False).encode()) == r'\xff'


def test_a_refusal_tells_whether_the_content_is_the_cause(tmp_path, monkeypatch):
    (tmp_path / 'a.mp4').write_bytes(b'no video')
    with pytest.raises(video_file.VideoError) as error:
        video_file.count_frames(tmp_path / 'a.mp4')
    assert error.value.reason == 'not_a_video' and error.value.reason not in decoding.TRANSIENT_REASONS
    for number, reason in ((errno.EACCES, 'unreadable'), (errno.ETIMEDOUT, 'unreadable'), (errno.EIO, 'not_a_video')):

        def fail(*_, number=number, **__):
            raise av.error.OSError(number, 'no luck')

        monkeypatch.setattr(av, 'open', fail)
        with pytest.raises(video_file.VideoError) as error:
            video_file.count_frames(tmp_path / 'a.mp4')
        assert error.value.reason == reason and (reason in decoding.TRANSIENT_REASONS) == (number != errno.EIO)


class Frame:
    def __init__(self, pts, dts):
        self.pts, self.dts, self.time_base = pts, dts, 0.5


@pytest.mark.parametrize(
    ('stamps', 'restarts', 'times'),
    [
        ([(0, 0), (1, 1), (2, 2)], False, [0, 0.5, 1]),
        ([(None, 1), (None, 2), (None, None)], False, [0.5, 1, 1.25]),
        ([(None, None), (None, None)], False, [0, 0.25]),
        ([(0, 0), (3, 1), (1, 2), (2, 3)], False, [0, 1.5, 1, 1.5]),  # a wrong pts costs one frame
        ([(6, 6), (0, 0), (1, 1)], True, [3, 3.25, 3.75]),
        ([(6, 6), (0, 0)], False, [3, 0]),
    ],
)
def test_times_are_guessed_as_ffmpeg_does(stamps, restarts, times):
    clock = decoding.Clock(0.25, restarts)
    assert [clock.time(Frame(*stamp)) for stamp in stamps] == times
    assert not any(map(math.isnan, times))
