"""`--config` by path and by name, from any folder; a wrong one lists what there is; with --help it is explained."""

import dataclasses

import pytest

from launch import commands
from launch.config_flag import config_to_explain, print_config_help
from magi_jax import config_files
from magi_jax.config import ConfigError, MagiConfig, from_config_dict
from magi_jax.config_files import find_config_file, import_config, shipped_names
from tests.launch.commands import ROOT, assert_one_line, module
from tests.launch.forked import run_forked

SHIPPED = 'magi_kinetics600, magi_ucf101, own_videos, quickstart'


def config_of(name, variants=''):
    return from_config_dict(import_config(name).get_config(variants))


@pytest.mark.parametrize('name', ['quickstart', 'quickstart.py', 'configs/quickstart.py', './configs/quickstart.py'])
def test_a_shipped_config_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'quickstart').mkdir()  # a folder of runs, say
    assert find_config_file(name).samefile(ROOT / 'configs/quickstart.py')


def test_a_file_that_is_there_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'quickstart.py').write_text('from magi_jax.config import default as get_config\n')
    assert find_config_file('quickstart.py').samefile(tmp_path / 'quickstart.py')


def test_a_copy_of_a_config_works_in_another_folder(tmp_path, monkeypatch):
    for name in shipped_names():
        (tmp_path / f'my_{name}.py').write_text((ROOT / 'configs' / f'{name}.py').read_text())
    monkeypatch.chdir(tmp_path)
    for name in shipped_names():
        assert config_of(f'my_{name}.py') == config_of(name)


@pytest.mark.parametrize(
    'name', ['nope', 'configs/nope.py', 'elsewhere/quickstart.py', 'quickstart.json', 'configs', '']
)
def test_a_wrong_path_lists_the_configs(name):
    with pytest.raises(ConfigError, match=f'no config file {name!r}: .*{SHIPPED}'):
        find_config_file(name)


def test_another_python_file_is_no_config():
    with pytest.raises(ConfigError, match='launch/dataset_commands.py is not a config file: define get_config'):
        find_config_file(str(ROOT / 'launch/dataset_commands.py'))


@pytest.mark.parametrize('arguments', [['--config=nope'], ['--config', 'configs/nope.py', '--config.seed=1']])
def test_commands_list_the_configs_in_one_line(arguments, environment, tmp_path):
    for command in ('launch.train', 'launch.preflight'):
        result = run_forked([*module(command), '--workdir', str(tmp_path / 'run'), *arguments], environment)
        assert_one_line(result, 'no config file', SHIPPED)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'arguments', [['--help', '--config', 'own_videos:autoencoder'], ['--config=own_videos:autoencoder', '--help']]
)
def test_help_with_a_config_shows_its_header_variants_and_fields(arguments, environment):
    result = run_forked([*module('launch.train'), *arguments], environment)
    assert result.returncode == 0 and not result.stderr
    for text in (
        '--workdir: folder of this run',
        'MAGI on your own videos',
        'variants (--config own_videos:VARIANT,...): autoencoder, runlocal',
        "masked_diffusion|autoencoder = 'autoencoder'  (default 'masked_diffusion')",
    ):
        assert text in result.stdout
    fields = [line.split()[0] for line in result.stdout.splitlines() if line.startswith('  ') and ' = ' in line]
    assert {'seed', 'model.head.width', 'optim.learning_rate', 'mesh.data'} <= set(fields)


def test_help_shows_every_field(capsys):
    def names(group, prefix=''):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            nested = dataclasses.is_dataclass(value)
            yield from names(value, f'{prefix}{field.name}.') if nested else [prefix + field.name]

    print_config_help('quickstart')
    shown = capsys.readouterr().out
    assert all(f'\n  {name} ' in shown for name in names(MagiConfig()))


@pytest.mark.parametrize(
    ('arguments', 'value'),
    [
        (['--help'], None),
        (['--config', 'a'], None),
        (['--config.seed=1', '--help'], None),
        (['--help', '--config'], None),
        (['-config=a:b', '-?'], 'a:b'),
    ],
)
def test_only_help_with_a_config_explains_it(arguments, value):
    assert config_to_explain(['train.py', *arguments]) == value


def test_texts_name_the_commands_of_this_installation(monkeypatch):
    text = 'run launch.train (python -m launch.train --config launch/a.py) or see magi_jax.launch.sample, launch.'
    assert commands.qualify_commands(text) == text
    monkeypatch.setattr(commands, '__package__', 'magi_jax.launch')
    assert commands.qualify_commands(text) == (
        'run magi_jax.launch.train (python -m magi_jax.launch.train --config launch/a.py)'
        ' or see magi_jax.launch.sample, launch.'
    )


def test_without_shipped_configs_a_path_still_works(monkeypatch):
    monkeypatch.setattr(config_files, 'SHIPPED', None)
    assert find_config_file(str(ROOT / 'configs/quickstart.py')).is_file()
    with pytest.raises(ConfigError):
        find_config_file('quickstart')
