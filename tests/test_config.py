"""A config is either understood completely or refused by the name of what is wrong."""

import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from magi_jax.config import ConfigError, MagiConfig, default, from_config_dict, to_config_dict
from magi_jax.config_checks import check_config

FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))


def load_file(path):
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(**fields):
    """The default config as a plain dict with `group__field=value` set."""
    values = to_config_dict(MagiConfig()).to_dict()
    for path, value in fields.items():
        *groups, name = path.split('__')
        group = values
        for key in groups:
            group = group[key]
        group[name] = value
    return values


def test_default_is_the_schema():
    assert from_config_dict(default()) == MagiConfig()
    assert from_config_dict({}) == MagiConfig()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'sede': 1}, r'unknown config field config\.sede: choose one of .*seed'),
        ({'optim__lerning_rate': 1e-4}, r'unknown config field config\.optim\.lerning_rate: .*learning_rate'),
        ({'model__head__widht': 7}, r'unknown config field config\.model\.head\.widht'),
        ({'model__width': '1280'}, r"config\.model\.width = '1280' is of type str: give a whole number"),
        ({'model__width': 1280.0}, r'config\.model\.width = 1280\.0 is of type float: give a whole number'),
        ({'model__width': None}, r'config\.model\.width = None is of type NoneType: give a whole number'),
        ({'model__width': True}, r'config\.model\.width = True is of type bool: give a whole number'),
        ({'optim__learning_rate': True}, r'config\.optim\.learning_rate = True is of type bool: give a number'),
        ({'data__flip_vertical': 1}, r'config\.data\.flip_vertical = 1 is of type int: give True or False'),
        ({'data__path': 3}, r'config\.data\.path = 3 is of type int: give text'),
        ({'model__teacher_forcing': 'ctf'}, r"teacher_forcing = 'ctf' is unknown: choose one of 'complete', 'masked'"),
        ({'masking__noise_std': (0.0, 'x')}, r"config\.masking\.noise_std\[1\] = 'x' is of type str: give a number"),
        ({'masking__noise_std': 0.5}, r'config\.masking\.noise_std = 0\.5 is of type float: give a list'),
        ({'model__head': 3}, r'config\.model\.head = 3 is not a group of fields'),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(**fields))
    with pytest.raises(ConfigError, match=message):
        from_config_dict(ConfigDict(changed(**fields)))


def test_values_that_mean_the_same_are_taken():
    config = from_config_dict(changed(optim__learning_rate=1, masking__noise_std=[0, 0.5]))
    assert config.optim.learning_rate == 1.0 and type(config.optim.learning_rate) is float
    assert config.masking.noise_std == (0.0, 0.5) and type(config.masking.noise_std) is tuple
    assert type(config.masking.noise_std[0]) is float


def test_round_trip_through_json():
    values = changed(sampler__x0_clip=math.inf, sampler__start=999, masking__noise_std=(0.0, 0.3), model__head__width=7)
    config = from_config_dict(values)
    again = from_config_dict(json.loads(json.dumps(to_config_dict(config).to_dict())))
    assert again == config and again.sampler.x0_clip == math.inf and again != MagiConfig()


def test_a_config_cannot_change_after_it_was_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MagiConfig().model.width = 7


def test_there_are_config_files():
    assert FILES


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_config_file(path):
    """Every file offers get_config(arg) and VARIANTS; each variant is another experiment, also when run locally."""
    module = load_file(path)
    assert module.__doc__ and 'python -m launch.' in module.__doc__, 'the header must say the command'
    names = ['', *module.VARIANTS]
    configs = {name: from_config_dict(module.get_config(name)) for name in names}
    for one, other in itertools.combinations(names, 2):
        assert configs[one] != configs[other], f'{one!r} and {other!r} are the same experiment'
    for name in names:
        local = from_config_dict(module.get_config(f'{name},runlocal' if name else 'runlocal'))
        for config in (configs[name], local):
            check_config(config)
        assert local.train.steps <= min(100, configs[name].train.steps), 'runlocal must take seconds'
    with pytest.raises(ConfigError, match='nonsense'):
        module.get_config('nonsense')
