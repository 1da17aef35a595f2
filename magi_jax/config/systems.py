"""The table of systems, and configs as values: built from a ConfigDict or JSON, with some fields replaced.

A config file (`configs/*.py`) starts from `default()`, sets the fields that differ and returns the ConfigDict.
`from_config_dict` turns it into the `Config` of its system.
"""

import dataclasses
import json
import typing
from typing import Any, Literal

from ml_collections import ConfigDict

from magi_jax.config.groups import Config
from magi_jax.config.magi import MagiConfig
from magi_jax.config.videomar import VideomarConfig
from magi_jax.fields import ConfigError, build, convert, describe, has_field, unknown_fields

SYSTEMS: dict[str, type[Config]] = {'magi': MagiConfig, 'videomar': VideomarConfig}


def default(system: str = 'magi') -> ConfigDict:
    """Return the default experiment of a system as a mutable ConfigDict, from which every config file starts."""
    return to_config_dict(SYSTEMS[system]())


def to_config_dict(config: Config) -> ConfigDict:
    """Return `Config` as a ConfigDict, the inverse of `from_config_dict`."""
    return ConfigDict(dataclasses.asdict(config), type_safe=False)


def from_config_dict(values: ConfigDict | dict) -> Config:
    """Return the config of a ConfigDict, or of the plain dict of a saved config.json.

    Field `system` selects the class; configs saved before it existed are MAGI's.

    Raises:
      ConfigError: a field is unknown or belongs to another system, or its value is not of the declared type, choice or
        range.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    if not isinstance(plain, dict):
        raise ConfigError(f'config = {plain!r} is not a group of fields: set config.FIELD')
    name = plain.get('system', 'magi')
    if name not in SYSTEMS:
        raise ConfigError(f'config.system = {name!r} is unknown: choose one of {", ".join(map(repr, SYSTEMS))}')
    for path in unknown_fields(SYSTEMS[name], plain):
        owners = [other for other, cls in SYSTEMS.items() if has_field(cls, path)]
        if owners:
            raise ConfigError(
                f'config.{path} is a field of {" and ".join(owners)}, and this config is of {name}: remove it, or set'
                f' config.system to {" or ".join(owners)}'
            )
    return build(SYSTEMS[name], plain, 'config')


def override(group: Any, assignments: list[str]) -> Any:
    """Return a config group with some fields replaced, given as texts such as 'temperature=0.9'.

    Raises:
      ConfigError: a text without '=', an unknown field, or a value that is not of its type or range.
    """
    hints, changes = typing.get_type_hints(type(group)), {}
    for text in assignments:
        name, equals, value = text.partition('=')
        if not equals or name not in hints:
            raise ConfigError(f'{text!r} is not FIELD=VALUE: choose a field of {", ".join(hints)}')
        try:
            parsed = value if hints[name] is str or typing.get_origin(hints[name]) is Literal else json.loads(value)
        except ValueError:  # not JSON, or an int with thousands of digits
            parsed = float(value) if value in ('inf', '-inf', 'nan') else value
        changes[name] = parsed
    return replace_fields(group, changes)


def replace_fields(group: Any, changes: dict[str, Any]) -> Any:
    """Return a config group with some fields replaced, each checked as in `from_config_dict`.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type, choice or range.
    """
    hints = typing.get_type_hints(type(group), include_extras=True)
    if unknown := [name for name in changes if name not in hints]:
        raise ConfigError(f'unknown field {unknown[0]!r}: choose one of {", ".join(hints)}')
    return dataclasses.replace(group, **{name: convert(hints[name], value, name) for name, value in changes.items()})


def sampler_help() -> dict[str, str]:
    """Return the allowed values of the sampler fields of all systems; a name in brackets limits a field to a system."""
    helps = {name: field_help(type(cls().sampler)) for name, cls in SYSTEMS.items()}
    merged: dict[str, str] = {}
    for field in dict.fromkeys(field for fields in helps.values() for field in fields):
        texts = {name: fields[field] for name, fields in helps.items() if field in fields}
        shared = len(texts) == len(SYSTEMS) and len(set(texts.values())) == 1
        merged[field] = texts['magi'] if shared else ', '.join(f'{text} ({name})' for name, text in texts.items())
    return merged


def field_help(group: type) -> dict[str, str]:
    """Return the allowed values of each field of a config group in words: {name: 'from 1 to 65536'}."""
    hints = typing.get_type_hints(group, include_extras=True)
    return {name: describe(hint) for name, hint in hints.items()}
