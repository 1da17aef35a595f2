"""Stored videos: exact where promised, the same bytes each time, and no more decoded than a clip needs."""

import dataclasses

import einops
import numpy as np
import pytest

from magi_jax.data import stored_video
from magi_jax.data.video_file import VideoError
from tests.data.video_kinds import moving


@pytest.fixture(scope='module')
def video():
    return moving(frames=29, height=38, width=46)


def packets_decoded(monkeypatch):
    decoded = []
    original = stored_video._decode
    monkeypatch.setattr(stored_video, '_decode', lambda *args: decoded.append(args[-1]) or original(*args))
    return decoded


def test_lossless_is_exact_and_h264_close(video):
    lossless = stored_video.encode(video, 12, 'lossless', 5)
    np.testing.assert_array_equal(stored_video.read(lossless, range(29), 38, 46), video)
    lossy = stored_video.encode(video, 12, 'h264', 5)
    back = stored_video.read(lossy, range(29), 38, 46)
    assert len(lossy) == len(lossless) == 29 and len(lossy.stream) == lossy.sizes.sum() < len(lossless.stream)
    blocks = [
        einops.reduce(v[:, :36, :44].astype(float), 't (h i) (w j) c -> t h w c', 'mean', i=4, j=4)
        for v in (back, video)
    ]
    assert 0 < np.abs(blocks[0] - blocks[1]).mean() < 3  # averages of 4x4 pixels: colour is stored at half the size
    assert stored_video.encode(video, 12, 'h264', 5).stream == lossy.stream


@pytest.mark.parametrize('codec', stored_video.CODECS)
def test_any_order_of_frames_is_that_of_the_whole_video(video, codec):
    stored = stored_video.encode(video, 12, codec, 6)
    whole = stored_video.read(stored, range(29), 38, 46)
    for indices in ([28, 0, 13], [5, 6, 7, 11, 12], [17], [3, 3], range(1, 29, 9)):
        np.testing.assert_array_equal(stored_video.read(stored, indices, 38, 46), whole[list(indices)])


def test_decoding_starts_at_the_last_keyframe(video, monkeypatch):
    stored = stored_video.encode(video, 12, 'h264', 6)
    decoded = packets_decoded(monkeypatch)
    stored_video.read(stored, [20, 8, 22, 6], 38, 46)
    assert decoded == [6, 7, 8, 18, 19, 20, 21, 22]


def test_another_size_is_scaled(video):
    stored = stored_video.encode(video, 12, 'h264', 6)
    assert stored_video.read(stored, [4, 9], 20, 20).shape == (2, 20, 20, 3)


def test_damage_is_an_error_and_the_next_read_is_well(video):
    stored = stored_video.encode(video, 12, 'h264', 6)
    start = int(stored.sizes[:8].sum())
    noise = np.random.default_rng(0).bytes(int(stored.sizes[8]))
    broken = dataclasses.replace(stored, stream=stored.stream[:start] + noise + stored.stream[start + len(noise) :])
    with pytest.raises(VideoError, match='packet 8 '):
        stored_video.read(broken, [10], 38, 46)
    np.testing.assert_array_equal(stored_video.read(broken, [14], 38, 46), stored_video.read(stored, [14], 38, 46))
    with pytest.raises(IndexError, match='29'):
        stored_video.read(stored, [3, 29], 38, 46)
