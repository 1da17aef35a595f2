"""The flag `--config`: a config file by path or by name, and what `--help --config FILE` shows of it."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from absl import app, flags
from ml_collections import config_flags

from magi_jax.config import Config, from_config_dict
from magi_jax.config_files import find_config_file, import_config

from .commands import as_called_here

flags.disclaim_key_flags()  # --help shows the flag as one of the command that defines it


class _NamedFileParser(flags.ArgumentParser):
    """The parser of ml_collections, which also finds shipped files by name. Raise ConfigError if there is no file."""

    def __init__(self, of_paths: flags.ArgumentParser):
        self.of_paths = of_paths

    def parse(self, path: str) -> Any:
        name, colon, variants = path.partition(':')
        return self.of_paths.parse(f'{find_config_file(name)}{colon}{variants}')


def define_config() -> flags.FlagHolder:
    """Define `--config` for a command; `console.read_config` reads it."""
    text = 'NAME or PATH.py, then [:variant,runlocal]; with --help: its variants and fields'
    holder = config_flags.DEFINE_config_file('config', None, text, lock_config=True)
    flags.FLAGS['config'].parser = _NamedFileParser(flags.FLAGS['config'].parser)
    return holder


def config_to_explain(argv: list[str]) -> str | None:
    """Return the value of `--config` if the arguments also hold `--help`, in any order; else None."""
    if not {'--help', '-help', '--helpshort', '-helpshort', '-?'} & set(argv):
        return None
    for argument, following in zip(argv, [*argv[1:], None]):
        if match := re.fullmatch(r'--?config(?:=(.*))?', argument):
            return following if match[1] is None else match[1]
    return None


def print_config_help(value: str) -> None:
    """Print the flags of the command, then header, variants and fields of a config.

    Raises:
      ConfigError: there is no such file or variant.
    """
    name, _, variants = value.partition(':')
    path, module = find_config_file(name), import_config(name)
    config = from_config_dict(module.get_config(variants))
    app.usage(shorthelp=True, writeto_stdout=True)
    print(f'\n{path}{f", variants {variants}" if variants else ""}:\n\n{as_called_here(module.__doc__ or "").strip()}')
    print(f'\nvariants (--config {name}:VARIANT,...): {", ".join([*_variants(module), "runlocal"])}')
    print('\nfields of this config (--config.FIELD=VALUE), with the default where this config has another value:')
    for line in _field_lines(config, Config()):
        print(f'  {line}')


def _variants(module: types.ModuleType) -> tuple[str, ...]:
    return tuple(getattr(module, 'VARIANTS', ()))


def _field_lines(group: Any, default: Any, prefix: str = '') -> Iterator[str]:
    for name, hint in typing.get_type_hints(type(group)).items():
        value, usual = getattr(group, name), getattr(default, name)
        if dataclasses.is_dataclass(hint):
            yield from _field_lines(value, usual, f'{prefix}{name}.')
        else:
            note = '' if value == usual else f'  (default {usual!r})'
            yield f'{prefix + name:32} {_type_name(hint)} = {value!r}{note}'


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return '|'.join(typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
