"""Rules for the values of config fields, declared with the type: number ranges, and paths with `~`.

batch_size: Annotated[int, Range(1, 2**20)] = 128
path: Annotated[str, PATH] = ''
"""

import dataclasses
import os
import typing
from typing import Annotated, Any, Literal, Protocol

LARGEST = 1e30  # float32 overflows soon after
TYPES = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'text'}


class ConfigError(ValueError):
    """A config or argument that cannot be used. The message names the field and what to do."""


class Rule(Protocol):
    """A check of a value that already has the right type."""

    def apply(self, value: Any, path: str) -> Any:
        """Return the value to keep. Raise ConfigError, naming the field `path`, if the value is not allowed."""

    def describe(self) -> str:
        """Return the allowed values in words."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; for a tuple, its length. NaN is never allowed.

    Attributes:
      low: smallest value.
      high: largest value.
      above: True if `low` itself is not allowed.
      below: True if `high` itself is not allowed.
      also: further allowed values outside the range, such as -1 or inf, if they have a special meaning.
    """

    low: float
    high: float = LARGEST
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def apply(self, value: Any, path: str) -> Any:
        """Return `value`. Raise ConfigError if it lies outside the range."""
        number = len(value) if isinstance(value, tuple) else value
        high_enough = number > self.low if self.above else number >= self.low
        low_enough = number < self.high if self.below else number <= self.high
        if number in self.also or (high_enough and low_enough):
            return value
        if isinstance(value, tuple):
            raise ConfigError(f'{path} holds {number} values: give {self.describe()}')
        raise ConfigError(f'{path} = {value!r} is out of range: choose {self.describe()}')

    def describe(self) -> str:
        """Return the allowed values in words, e.g. 'from 0, below 1'."""
        low = f'{"above" if self.above else "from"} {self.low:g}'
        if self.high == LARGEST:
            text = f'any finite number {low}' if self.above else f'any finite number {low} on'
        else:
            high = self.high if isinstance(self.high, int) else f'{self.high:g}'
            text = f'{low}, below {high}' if self.below else f'{low} to {high}'
        return ' or '.join([*(f'{value:g}' for value in self.also), text])


@dataclasses.dataclass(frozen=True)
class PathRule:
    """A local path in which `~` stands for the home folder."""

    def apply(self, value: str, path: str) -> str:
        """Return `value` with `~` expanded."""
        del path
        return expand_path(value)

    def describe(self) -> str:
        """Return the allowed values in words."""
        return 'a path'


PATH = PathRule()


def expand_path(text: str) -> str:
    """Return a path with a leading `~` or `~user` replaced by the home folder.

    Raises:
      ConfigError: the home folder is unknown. Otherwise a folder named `~` would be made.
    """
    expanded = os.path.expanduser(text)
    if expanded.startswith('~'):
        raise ConfigError(f'the home folder in {text!r} is unknown: write the full path, or set HOME')
    return expanded


def require_utf8(folder: str | os.PathLike) -> None:
    """Raise ConfigError if a path is not UTF-8. The libraries that write checkpoints and datasets need that."""
    name = os.fsencode(folder)
    try:
        name.decode()
    except UnicodeDecodeError:
        shown = name.decode(errors='backslashreplace')
        raise ConfigError(f'{shown} is not UTF-8, as folders of checkpoints and datasets are: choose another') from None


def build(cls: type, values: Any, path: str) -> Any:
    """Build the dataclass `cls` from a dict of its fields, nested groups included.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type, choice or range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{path} = {values!r} is not a group of fields: set {path}.FIELD')
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in hints:
            raise ConfigError(f'unknown config field {path}.{name}: choose one of {", ".join(hints)}')
    return cls(**{name: convert(hints[name], value, f'{path}.{name}') for name, value in values.items()})


def unknown_fields(cls: type, values: Any, prefix: str = '') -> list[str]:
    """Return the dotted paths of keys in nested dicts that are no fields of the dataclass `cls`."""
    hints, unknown = typing.get_type_hints(cls), []
    for name, value in values.items():
        if name not in hints:
            unknown.append(prefix + name)
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            unknown += unknown_fields(hints[name], value, f'{prefix}{name}.')
    return unknown


def has_field(cls: type, path: str) -> bool:
    """Return True if the dataclass `cls` has a field at a dotted path."""
    name, _, rest = path.partition('.')
    hints = typing.get_type_hints(cls)
    return name in hints and (not rest or (dataclasses.is_dataclass(hints[name]) and has_field(hints[name], rest)))


def convert(hint: Any, value: Any, path: str) -> Any:
    """Check `value` of the field `path` against its annotation, and return the value to keep.

    Ints are accepted for floats and lists for tuples; nothing else is converted.
    """
    if typing.get_origin(hint) is not Annotated:
        return _typed(hint, value, path)
    value = _typed(hint.__origin__, value, path)
    for rule in hint.__metadata__:
        value = rule.apply(value, path)
    return value


def describe(hint: Any) -> str:
    """Return the allowed values of a field with this annotation in words."""
    kind, *rules = [hint.__origin__, *hint.__metadata__] if typing.get_origin(hint) is Annotated else [hint]
    if typing.get_origin(kind) is Literal:
        return ' or '.join(map(str, typing.get_args(kind)))
    return ', '.join(rule.describe() for rule in rules) or TYPES.get(kind, str(kind))


def _typed(kind: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f'{path} = {value!r} is unknown: choose one of {", ".join(map(repr, args))}')
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(convert(args[0], item, f'{path}[{i}]') for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(min(max(value, -(10**300)), 10**300))  # larger ints overflow
    if type(value) is kind:
        return value
    raise ConfigError(f'{path} = {value!r} is of type {type(value).__name__}: give {TYPES.get(kind, "a list")}')
