"""Fields of a VideoMAR config that contradict each other are errors of one line, which say what to change."""

import jax
import numpy as np
import pytest

from magi_jax.config import ConfigError, VideomarConfig, default, from_config_dict, to_config_dict
from magi_jax.config_checks import check_config
from magi_jax.objectives.api import make_objective
from magi_jax.tokenizers.api import create_tokenizer


def _config(**fields):
    """A small config of VideoMAR with `group__field=value` set."""
    values = default('videomar')
    values.tokenizer.kind, values.tokenizer.channels = 'identity', 192
    values.model.width, values.model.heads, values.model.rope_split = 32, 2, (8, 4, 4)
    for path, value in fields.items():
        *groups, name = path.split('__')
        group = values
        for key in groups:
            group = group[key]
        group[name] = value
    return from_config_dict(values)


def _check(config):
    """Check what a training run checks before it starts."""
    check_config(config)
    tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    return make_objective(config, tokenizer).trunk


def test_sound_configs_pass():
    assert _check(_config()).config.rope_split == (8, 4, 4)
    _check(_config(model__teacher_forcing='complete', masking__target_frames='every'))
    _check(_config(model__teacher_forcing='complete'))
    _check(_config(text__encoder='words', sampler__guidance=1.0, text__dropout=0.0))
    _check(_config(text__dropout=0.0))  # without text there is nothing to guide
    _check(_config(sampler__temperature=0.95, sampler__temperature_decay=0.0, sampler__temperature_drop=0.05))
    config = VideomarConfig()
    check_config(config)
    assert from_config_dict(to_config_dict(config)) == config and np.sum(config.model.rope_split) == 1536 // 24


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'masking__target_frames': 'every'},
            r"model\.teacher_forcing = 'single' .* masking\.target_frames = 'every': set masking\.target_frames",
        ),
        ({'model__rope_split': (8, 4, 8)}, r'split \(8, 4, 8\) .* a head of 16 channels.*: choose .* add up to 16'),
        (
            {'model__rope_split': (10, 3, 3)},
            r'split \(10, 3, 3\) .* a head of 16 channels.*: choose three even numbers',
        ),
        ({'model__heads': 4}, r'split \(8, 4, 4\) does not divide a head of 8 channels'),
        ({'model__heads': 5}, r'model\.width = 32 must be a multiple of 4 and of model\.heads = 5'),
        (
            {'text__encoder': 'words', 'text__dropout': 0.0},
            r'sampler\.guidance = 3\.0 needs a run trained with text\.dropout > 0: set sampler\.guidance = 1',
        ),
        (
            {'sampler__temperature_drop': 0.05},
            r'sampler\.temperature_decay = 1\.0 and sampler\.temperature_drop = 0\.05 .*: set one of them to 0',
        ),
        (
            {'sampler__temperature_decay': 0.0, 'sampler__temperature_drop': 2.0},
            r'sampler\.temperature_drop = 2\.0 is more than sampler\.temperature = 0\.9: choose .* from 0 to 0\.9',
        ),
        ({'model__head__timesteps': 50}, r'sampler\.start = 999 is not a timestep of model\.head\.timesteps = 50'),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        _check(_config(**fields))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('field', 'message'),
    [
        ('model__dropout', r'config\.model\.dropout is a field of magi'),
        ('masking__noise_std', r'config\.masking\.noise_std is a field of magi'),
        ('sampler__context_level', r'config\.sampler\.context_level is a field of magi'),
    ],
)
def test_fields_of_another_system_are_named(field, message):
    with pytest.raises(ConfigError, match=message):
        _config(**{field: 0})


def test_how_a_video_grows_longer_is_one_of_two_ways():
    with pytest.raises(ConfigError, match=r"long_video = 'interpolate' is unknown: choose one of 'extend', 'slide'"):
        _config(sampler__long_video='interpolate')
