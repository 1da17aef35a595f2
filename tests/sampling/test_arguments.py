"""What a user may give to a generator, and the one line that tells what else to give."""

import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError, MagiSamplerConfig
from magi_jax.sampling.arguments import check_numbers, check_seed, check_videos, check_whole, replace_sampler_fields

CLIPS = np.zeros((2, 3, 16, 32, 3), np.uint8)


def _refused(message, check, *arguments):
    with pytest.raises(ConfigError, match=message) as error:
        check(*arguments)
    assert isinstance(error.value, ValueError) and '\n' not in str(error.value) and ': ' in str(error.value)


@pytest.mark.parametrize(
    'value', [0, -3, 9, 2**40, True, np.int64(0), 2.0, np.float32(2), '2', None, [2], np.arange(2)]
)
def test_numbers_out_of_range_or_not_whole_are_refused(value):
    message = r'^frames = .*: give a whole number, 1 to 8 \(so long are clips\)$'
    _refused(message, check_whole, 'frames', value, 1, 8, 'so long are clips')


@pytest.mark.parametrize('value', [1, 8, np.int32(8), np.uint8(1)])
def test_whole_numbers_of_numpy_are_ints(value):
    assert check_whole('frames', value, 1, 8) == value and type(check_whole('frames', value, 1, 8)) is int


def test_no_seed_equals_another():
    assert [check_seed(seed) for seed in (0, 2**32 - 1)] == [0, 2**32 - 1]
    for seed in (-1, 2**32, 2**64, 0.5, None):
        _refused('seed = .* 0 to 4294967295', check_seed, seed)


@pytest.mark.parametrize(
    ('videos', 'message'),
    [
        (list(CLIPS), r'is a list: give an array uint8 \[clips, frames, 16, 32, 3\].* np\.stack'),
        ('clip.mp4', 'is a str: give an array'),
        (
            np.float32(CLIPS),
            r'float32 .*0\.\.255 as uint8, np\.uint8\(np\.round\(255 \* context\)\) for values in 0\.\.1',
        ),
        (jnp.zeros(CLIPS.shape, jnp.bfloat16), r'bfloat16 .*np\.round\(255 \* context\)'),
        (np.int64(CLIPS), r'int64 .*context\.astype\(np\.uint8\)'),
        (CLIPS[0], r'for one clip context\[None\]'),
        (CLIPS[0, 0], r'for one frame context\[None, None\]'),
        (CLIPS[None], r'uint8 \[1, 2, 3, 16, 32, 3\]: give uint8 \[clips,'),
        (np.moveaxis(CLIPS, -1, 2), r'uint8 \[2, 3, 3, 16, 32\]: give uint8 \[clips,'),
        (CLIPS[:, :, :8], r'fit\(clip, 16, 32\)'),
        (CLIPS[:0], 'without clips'),
    ],
)
def test_videos_of_another_kind_are_refused_with_the_way_to_convert_them(videos, message):
    _refused(message, check_videos, 'context', videos, 16, 32)


def test_videos_of_the_right_kind_are_taken():
    assert check_videos('context', CLIPS, 16, 32) is CLIPS
    assert check_videos('video', jnp.asarray(CLIPS)).shape == CLIPS.shape
    assert check_videos('context', CLIPS[:, :0], 16, 32).shape[1] == 0


@pytest.mark.parametrize('numbers', [[], 3, [0.5], [-1], [2**32], [2**70], [[0], [1]], ['a'], [True]])
def test_what_are_no_numbers_of_videos_is_refused(numbers):
    _refused('numbers = .* are not numbers of videos: give a list', check_numbers, numbers)


def test_numbers_of_videos_keep_all_their_bits():
    assert check_numbers([0, 2**32 - 1]).tolist() == [0, 2**32 - 1] and len(check_numbers(range(3))) == 3


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'temprature': 0.9},
            "'temprature' is not a sampler field: did you mean 'temperature'[?] Fields: mask_steps",
        ),
        ({'frame': 3}, "'frame' is not a sampler field: did you mean 'frames'[?]"),
        ({'zzz': 1}, "'zzz' is not a sampler field: choose one of mask_steps, .*context_noise"),
        ({'temperature': 'hot'}, "temperature = 'hot'"),
        ({'denoise_steps': 10.5}, 'denoise_steps = 10.5'),
        ({'solver': 'euler'}, "solver = 'euler' .*'ancestral', 'ddim'"),
    ],
)
def test_sampler_fields_are_checked_by_name_and_type(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace_sampler_fields(MagiSamplerConfig(), fields, ['frames', 'num'])


def test_sampler_fields_are_replaced():
    changed = replace_sampler_fields(
        MagiSamplerConfig(), {'temperature': np.float32(0.5), 'denoise_steps': np.int64(10)}
    )
    assert changed == MagiSamplerConfig(temperature=0.5, denoise_steps=10) and type(changed.denoise_steps) is int
    assert type(replace_sampler_fields(MagiSamplerConfig(), {'temperature': 1}).temperature) is float
