"""A config is either understood completely or refused by the name of what is wrong."""

import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from magi_jax.config import (
    SYSTEMS,
    ConfigError,
    MagiConfig,
    VideomarConfig,
    default,
    from_config_dict,
    override,
    sampler_help,
    to_config_dict,
)
from magi_jax.config_checks import check_config

FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))


def load_file(path):
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(system='magi', **fields):
    """The default config of a system as a plain dict with `group__field=value` set."""
    values = to_config_dict(SYSTEMS[system]()).to_dict()
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


def leaves(values, prefix=''):
    """{dotted path: value} of nested dicts."""
    found = {}
    for name, value in values.items():
        found |= leaves(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return found


PATHS = {name: leaves(changed(name)) for name in SYSTEMS}


@pytest.mark.parametrize('system', SYSTEMS)
def test_every_system_is_found_by_its_name(system):
    cls = SYSTEMS[system]
    assert from_config_dict(default(system)) == cls() and type(from_config_dict({'system': system})) is cls
    again = from_config_dict(json.loads(json.dumps(changed(system, seed=7))))
    assert type(again) is cls and again.seed == 7 and again.system == system


@pytest.mark.parametrize('value', ['videomur', '', None, 3])
def test_an_unknown_system_is_named(value):
    message = rf"config\.system = {value!r} is unknown: choose one of 'magi', 'videomar'"
    with pytest.raises(ConfigError, match=message):
        from_config_dict({'system': value})


@pytest.mark.parametrize(('system', 'owner'), [('magi', 'videomar'), ('videomar', 'magi')])
def test_fields_of_another_system_are_refused_by_name(system, owner):
    """Every field that only one system has, in the config of the other: the message names the field and both."""
    foreign = PATHS[owner].keys() - PATHS[system].keys()
    assert len(foreign) > 2
    for path in foreign:
        with pytest.raises(ConfigError) as error:
            from_config_dict(changed(system) | _nested(path, PATHS[owner][path], changed(system)))
        # A group that the other system lacks is refused as a whole.
        field = path if path.split('.')[0] in changed(system) else path.split('.')[0]
        assert str(error.value) == (
            f'config.{field} is a field of {owner}, and this config is of {system}: remove it, or set config.system to'
            f' {owner}'
        )


def _nested(path, value, values):
    """The first group of `path` in `values`, with the field set."""
    first, _, rest = path.partition('.')
    return {first: values.get(first, {}) | _nested(rest, value, values.get(first, {}))} if rest else {first: value}


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'model__teacher_forcing': 'masked'},
            r"teacher_forcing = 'masked' is unknown: choose one of 'single', 'compl",
        ),
        ({'model__rope_split': (32, 32)}, r'config\.model\.rope_split holds 2 values: give'),
        (
            {'model__rope_split': (32, 16.0, 16)},
            r'config\.model\.rope_split\[1\] = 16\.0 is of type float: give a whole',
        ),
        ({'sampler__long_video': 'interpolate'}, r"config\.sampler\.long_video = 'interpolate' is unknown: choose"),
        ({'text__encoder': None}, r'config\.text\.encoder = None is of type NoneType: give text'),
        ({'text__lenght': 3}, r'unknown config field config\.text\.lenght: choose one of encoder, length'),
    ],
)
def test_bad_fields_of_videomar_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed('videomar', **fields))


def test_configs_saved_before_systems_are_of_magi():
    saved = json.loads((pathlib.Path(__file__).parent / 'fixtures/magi.json').read_text())['complete']['config']
    assert 'system' not in saved and type(from_config_dict(saved)) is MagiConfig
    restored = leaves(json.loads(json.dumps(dataclasses.asdict(from_config_dict(saved)))))
    assert leaves(saved).items() <= restored.items()
    new = restored.keys() - leaves(saved).keys()
    assert new and {'system', 'stages'} <= new
    defaults = leaves(json.loads(json.dumps(dataclasses.asdict(MagiConfig()))))
    assert {path: restored[path] for path in new} == {path: defaults[path] for path in new}


def test_guidance_of_videomar_needs_text_dropout():
    start = {'system': 'videomar', 'text': {'encoder': 'words', 'dropout': 0.0}}
    with pytest.raises(
        ConfigError, match=r'sampler\.guidance = 3\.0 needs .* text\.dropout > 0: set sampler\.guidance = 1'
    ):
        check_config(from_config_dict(start))
    check_config(from_config_dict(start | {'sampler': {'guidance': 1.0}}))
    check_config(from_config_dict(start | {'text': {'dropout': 0.0}}))  # without text there is no guidance


def test_sampler_help_tells_which_system_has_a_field():
    texts = sampler_help()
    assert set(texts) == {
        path.split('.')[1] for paths in PATHS.values() for path in paths if path.startswith('sampler')
    }
    assert texts['mask_steps'] == 'from 1 to 65536' and texts['context_level'] == 'from 0 to 999 (magi)'
    assert texts['long_video'] == 'slide or interpolate (magi), extend or slide (videomar)'
    for cls in SYSTEMS.values():
        assert override(cls().sampler, ['long_video=slide']).long_video == 'slide'
    with pytest.raises(ConfigError, match="'context_level=1' is not FIELD=VALUE: choose a field of mask_steps"):
        override(VideomarConfig().sampler, ['context_level=1'])


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
