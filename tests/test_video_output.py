"""Sampled videos as files and in notebooks."""

import base64
import re

import numpy as np
import pytest

import magi_jax
from magi_jax.config import ConfigError
from magi_jax.data.video_file import read_video

CLIPS = np.zeros((3, 4, 16, 24, 3), np.uint8)
CLIPS[0], CLIPS[1], CLIPS[2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize('name', ['a.mp4', 'a.gif', 'A.MP4'])
def test_clips_are_written_as_one_grid(tmp_path, name):
    magi_jax.save_video(tmp_path / name, CLIPS + np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), fps=5)
    video = read_video(tmp_path / name)
    assert video.shape == (4, 34, 50, 3)
    corners = video[0, [8, 8, 26, 26], [12, 38, 12, 38]].astype(int)
    np.testing.assert_allclose(corners, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)], atol=12)


def test_one_clip_is_written_as_it_is(tmp_path):
    magi_jax.save_video(tmp_path / 'a.gif', CLIPS[0])
    assert read_video(tmp_path / 'a.gif').shape[1:] == (16, 24, 3)


@pytest.mark.parametrize(
    ('name', 'video', 'words'),
    [
        ('a.avi', CLIPS, 'a.avi has no known extension: use .mp4 or .gif'),
        ('a', CLIPS, 'has no known extension'),
        ('a.mp4', CLIPS.astype(np.float32), r'video float32 \[3, 4, 16, 24, 3\] must be uint8'),
        ('a.mp4', CLIPS[0, 0], r'\[16, 24, 3\] must be'),
        ('a.mp4', CLIPS[:, :0], 'at least one frame'),
        ('a.gif', CLIPS[:0], 'at least one frame'),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path, name, video, words):
    with pytest.raises(ConfigError, match=words):
        magi_jax.save_video(tmp_path / name, video)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('clips', [CLIPS, CLIPS[0]])
def test_a_notebook_gets_a_playing_video(tmp_path, clips):
    pytest.importorskip('IPython', reason='the notebook extra is not installed')
    html = magi_jax.show_video(clips)._repr_html_()
    assert all(word in html for word in ('<video', 'autoplay', 'loop', 'muted', 'controls'))
    content = re.search(r'data:video/mp4;base64,([^"]+)"', html).group(1)
    (tmp_path / 'shown.mp4').write_bytes(base64.b64decode(content))
    assert len(read_video(tmp_path / 'shown.mp4')) == 4
