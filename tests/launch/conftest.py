import os

import numpy as np
import pytest

from magi_jax.data.video_file import write_mp4
from tests.compilation import FAST_COMPILATION
from tests.launch.commands import ROOT


@pytest.fixture(scope='session')
def environment(tmp_path_factory):
    """One device, a home of their own, and compiled programs shared by all commands of the session."""
    home = tmp_path_factory.mktemp('home')
    own = {'HOME': str(home), 'XLA_FLAGS': FAST_COMPILATION, 'PYTHONPATH': str(ROOT)}
    own |= {'JAX_ENABLE_COMPILATION_CACHE': 'true', 'JAX_COMPILATION_CACHE_DIR': str(home / 'compiled')}
    own |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}
    return {**os.environ, **own}


@pytest.fixture(scope='session')
def videos(tmp_path_factory):
    """A folder of short videos of a moving square: 6 to train on, 2 to validate."""
    root = tmp_path_factory.mktemp('videos')
    for number in range(8):
        video = np.full((9, 32, 32, 3), 30 * number, np.uint8)
        for t in range(9):
            video[t, 2 * t : 2 * t + 9, number : number + 9] = (250, 120, 7)
        split = root / ('train' if number < 6 else 'validation')
        split.mkdir(exist_ok=True)
        write_mp4(split / f'{number}.mp4', video, 8)
    return root
