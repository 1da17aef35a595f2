"""The flag `--config`, which names a config file by path or name, and the output of `--help --config FILE`."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from absl import app, flags
from ml_collections import config_flags

from magi_jax.config import StageConfig, from_config_dict
from magi_jax.config.stages import STAGE_FIELDS
from magi_jax.config_files import find_config_file, import_config

from .commands import qualify_commands

flags.disclaim_key_flags()  # --help then lists --config under the command that defines it


class _NamedFileParser(flags.ArgumentParser):
    """Extend the parser of ml_collections: it also finds shipped config files by name.

    Raise ConfigError if there is no such file.
    """

    def __init__(self, path_parser: flags.ArgumentParser):
        self.path_parser = path_parser

    def parse(self, path: str) -> Any:
        name, colon, variants = path.partition(':')
        config = self.path_parser.parse(f'{find_config_file(name)}{colon}{variants}')
        if stages := config.get('stages', ()):
            unset = dataclasses.asdict(StageConfig())  # so that flags can set fields that the file leaves out
            config.stages = [unset | stage if isinstance(stage, dict) else stage for stage in stages]
        return config


def define_config() -> flags.FlagHolder:
    """Define the flag `--config`. Read its value with `console.read_config`."""
    text = 'config file: NAME or PATH.py, optionally with :variant,...; add --help to list its variants and fields'
    holder = config_flags.DEFINE_config_file('config', None, text, lock_config=True)
    flags.FLAGS['config'].parser = _NamedFileParser(flags.FLAGS['config'].parser)
    return holder


def define_stage() -> flags.FlagHolder:
    """Define the flag `--stage`, the number for `magi_jax.config.select_stage`."""
    return flags.DEFINE_integer('stage', 0, 'stage of a config with stages, from 1; 0 = the last', lower_bound=0)


def config_to_explain(argv: list[str]) -> str | None:
    """Return the value of `--config` if the arguments also contain `--help`, in any order; else None."""
    if not {'--help', '-help', '--helpshort', '-helpshort', '-?'} & set(argv):
        return None
    for argument, next_argument in zip(argv, [*argv[1:], None]):
        if match := re.fullmatch(r'--?config(?:=(.*))?', argument):
            return next_argument if match[1] is None else match[1]
    return None


def print_config_help(value: str) -> None:
    """Print the flags of the command, then the header, variants and fields of a config.

    Raises:
      ConfigError: the file or variant does not exist.
    """
    name, _, variants = value.partition(':')
    path, module = find_config_file(name), import_config(name)
    config = from_config_dict(module.get_config(variants))
    app.usage(shorthelp=True, writeto_stdout=True)
    print(
        f'\n{path}{f", variants {variants}" if variants else ""}:\n\n{qualify_commands(module.__doc__ or "").strip()}'
    )
    print(f'\nvariants (--config {name}:VARIANT,...): {", ".join([*_variants(module), "runlocal"])}')
    print('\nfields of this config (--config.FIELD=VALUE); a default is shown if the value differs from it:')
    for line in _field_lines(config, type(config)()):
        print(f'  {line}')


def _variants(module: types.ModuleType) -> tuple[str, ...]:
    return tuple(getattr(module, 'VARIANTS', ()))


def _field_lines(group: Any, default: Any, prefix: str = '') -> Iterator[str]:
    for name, hint in typing.get_type_hints(type(group)).items():
        value, default_value = getattr(group, name), getattr(default, name)
        if dataclasses.is_dataclass(hint):
            yield from _field_lines(value, default_value, f'{prefix}{name}.')
        else:
            note = '' if value == default_value else f'  (default {default_value!r})'
            yield f'{prefix + name:32} {_type_name(hint)} = {_shown(value)}{note}'
    if stages := getattr(group, 'stages', ()):
        fields = ', '.join(f'{name} ({path})' for name, path in STAGE_FIELDS.items())
        yield f'stages[0] to stages[{len(stages) - 1}] have the fields {fields}'


def _shown(value: Any) -> str:
    """Return the repr of a value; of stages only the fields that are set."""
    if isinstance(value, tuple) and value and isinstance(value[0], StageConfig):
        return repr(tuple({name: field for name, field in vars(stage).items() if field} for stage in value))
    return repr(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return '|'.join(typing.get_args(hint))
    if hint == tuple[StageConfig, ...]:
        return 'tuple of stages'
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
