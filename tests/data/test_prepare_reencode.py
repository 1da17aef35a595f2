"""One file at a time: what the formats of the world become, and why the broken ones do not."""

import dataclasses

import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.data import stored_video
from magi_jax.data.preparation.reencode import Prepared, Settings, constant_rate, reencode_file
from tests.data import video_kinds

SMALL = Settings(height=32, width=32)


@pytest.fixture(scope='module')
def good():
    return video_kinds.good_files()


def prepare(tmp_path, name, content, settings=SMALL):
    (tmp_path / name).write_bytes(content)
    return reencode_file(tmp_path / name, settings)


def frames_of(result, settings):
    return stored_video.read(result.video, range(len(result.video)), settings.height, settings.width)


def centre_of_square(image):
    """(row, column) of the orange square, as parts of the height and width."""
    mask = (image[..., 0].astype(int) - image[..., 2]) > 70
    return np.argwhere(mask).mean(0) / image.shape[:2]


def test_every_good_file_gives_all_of_its_frames(good, tmp_path):
    assert len(good) >= 15
    wide = Settings(height=48, width=64)
    for name, (content, frames) in good.items():
        result = prepare(tmp_path, name, content, wide)
        assert isinstance(result, Prepared), (name, result)
        assert frames in (None, len(result.video)), (name, len(result.video))
        images = frames_of(result, wide)
        if name.startswith(('gray', 'turned', 'portrait')):
            continue
        columns = [centre_of_square(image)[1] for image in images]
        assert np.diff(columns).min() > -0.02 and columns[-1] - columns[0] > 0.4, name


def test_every_broken_file_has_its_reason(tmp_path):
    broken = video_kinds.broken_files()
    assert len(broken) >= 12
    for name, (content, reason) in broken.items():
        result = prepare(tmp_path, name, content)
        assert not isinstance(result, Prepared) and result.reason == reason, (name, result)
        assert result.detail and '\n' not in result.detail


def test_what_is_no_file(tmp_path):
    (tmp_path / 'folder.mp4').mkdir()
    (tmp_path / 'dead.mp4').symlink_to('nowhere')
    assert reencode_file(tmp_path / 'folder.mp4', SMALL).reason == 'not_a_file'
    assert reencode_file(tmp_path / 'dead.mp4', SMALL).reason == 'missing'


def test_rotation_and_pixel_aspect_are_undone(good, tmp_path):
    # 48x64, turned to the left by its metadata: what moved to the right moves up, near the left edge.
    tall = Settings(height=64, width=48)
    turned = frames_of(prepare(tmp_path, 'turned.mov', good['turned.mov'][0], tall), tall)
    first, last = centre_of_square(turned[0]), centre_of_square(turned[-1])
    assert first[0] > 0.8 and last[0] < 0.2 and abs(first[1] - 1 / 3) < 0.06
    # 48x64 with pixels 4/3 as wide as high is shown as 48x85: a square crop loses a quarter on either side.
    square = Settings(height=48, width=48)
    wide = frames_of(prepare(tmp_path, 'wide.mp4', good['wide_pixels.mp4'][0], square), square)
    middle = centre_of_square(wide[12])
    mask = (wide[12][..., 0].astype(int) - wide[12][..., 2]) > 70
    rows, columns = (np.ptp(axis) + 1 for axis in np.nonzero(mask))
    assert abs(columns / rows - 4 / 3) < 0.2 and abs(middle[1] - 0.5) < 0.15


def test_variable_rate_becomes_constant_by_time(tmp_path):
    # The square moves evenly per frame, the frames come slowly first and then four times as fast.
    times = [*range(0, 2400, 200), *range(2400, 3000, 50)]
    content = video_kinds.encode('libx264', 'mp4', times=times)
    settings = Settings(height=48, width=64, fps=20)
    result = prepare(tmp_path, 'a.mp4', content, settings)
    assert len(result.video) == 60 and result.fps == 20
    columns = np.asarray([centre_of_square(image)[1] for image in frames_of(result, settings)])
    assert columns[48] - columns[0] < 0.5 < columns[-1] - columns[0]
    assert np.ptp(columns[:4]) < 0.01 < columns[49] - columns[48]


def test_fps_divides_and_multiplies(good, tmp_path):
    for fps, frames in ((6, 12), (24, 48)):
        settings = dataclasses.replace(SMALL, fps=fps, min_frames=1)
        assert len(prepare(tmp_path, 'a.mp4', good['h264.mp4'][0], settings).video) == frames


@pytest.mark.parametrize(
    ('times', 'fps', 'counts'),
    [
        ([0, 0.1, 0.2], 10, [1, 1, 1]),
        ([5.0, 5.1, 5.2], 10, [1, 1, 1]),  # the first time is output 0
        ([0, 0.033, 0.067, 0.1], 30, [1, 1, 1, 3]),  # milliseconds of 30 per second
        ([0, 0.1, 0.2, 0.3], 5, [1, 0, 1, 0]),
        ([0, 0.101, 0.199, 0.301], 5, [1, 0, 1, 0]),
        ([0, 0.1, 0.2], 20, [2, 2, 2]),
        ([0, 0.1, 0.5], 10, [1, 4, 1]),
        ([0, 0, 0.1], 10, [0, 1, 1]),
        ([0], 10, [1]),
        ([], 10, []),
    ],
)
def test_constant_rate(times, fps, counts):
    shown = list(constant_rate(((n, time, 0.1) for n, time in enumerate(times)), fps))
    assert [frame for frame, _ in shown] == list(range(len(times)))
    assert [count for _, count in shown] == counts


def test_settings_that_cannot_be_are_refused():
    for bad in ({'height': 33}, {'codec': 'vp9'}, {'fps': -1}, {'min_frames': 0}, {'keyframe_interval': 0}):
        with pytest.raises(ConfigError):
            Settings(**bad)
    assert Settings(height=33, codec='lossless').height == 33
