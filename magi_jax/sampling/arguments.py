"""Checks of the arguments that a user gives to a generator: each mistake is one line, `what is wrong: what to do`."""

import dataclasses
import difflib
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import ConfigError, SamplerConfig, replace_fields

LARGEST_SEED = 2**32 - 1  # jax.random.key keeps 32 bits: a larger seed would equal a smaller one


def check_whole(name: str, value: Any, low: int, high: int | None = None, reason: str = '') -> int:
    """Return `value` as an int.

    Args:
      name: of the argument.
      value: what the user gave.
      low: smallest allowed value.
      high: largest allowed value; None: any.
      reason: why, added to the message.

    Raises:
      ConfigError: it is not a whole number, or not allowed.
    """
    allowed = f'{low} or more' if high is None else f'{low} to {high}'
    advice = f'give a whole number, {allowed}{reason and f" ({reason})"}'
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ConfigError(f'{name} = {_shown(value)} is not a whole number: {advice}') from error
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise ConfigError(f'{name} = {value} is out of range: {advice}')
    return number


def check_seed(seed: Any) -> int:
    """Return `seed` as an int. Raise ConfigError if a key cannot hold all its bits."""
    return check_whole('seed', seed, 0, LARGEST_SEED)


def check_videos(name: str, videos: Any, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Return `videos` as a NumPy array uint8 [B, T, H, W, 3], B >= 1.

    Args:
      name: of the argument.
      videos: what the user gave.
      height: H; None: any.
      width: W; None: any.

    Raises:
      ConfigError: it is no such array; the message tells how to convert it.
    """
    wanted = f'uint8 [clips, frames, {height or "height"}, {width or "width"}, 3]'
    if not isinstance(videos, np.ndarray | jax.Array):
        raise ConfigError(f'{name} is a {type(videos).__name__}: give an array {wanted}, for a list np.stack(list)')
    found = f'{videos.dtype} [{", ".join(map(str, videos.shape))}]'
    if videos.ndim != 5 or videos.shape[-1] != 3:
        advice = {3: f', for one frame {name}[None, None]', 4: f', for one clip {name}[None]'}.get(videos.ndim, '')
        raise ConfigError(f'{name} is {found}: give {wanted}{advice}')
    if height and videos.shape[2:4] != (height, width):
        advice = f'for a clip magi_jax.data.video_file.fit(clip, {height}, {width})'
        raise ConfigError(f'{name} is {found}, not {wanted}: resize its frames, {advice}')
    if videos.dtype != np.uint8:
        floats = jnp.issubdtype(videos.dtype, jnp.floating)
        advice = f'np.uint8(np.round(255 * {name})) for values in 0..1' if floats else f'{name}.astype(np.uint8)'
        raise ConfigError(f'{name} is {found}, not {wanted}: give values in 0..255 as uint8, {advice}')
    if not len(videos):
        raise ConfigError(f'{name} is {found}, no clip at all: give {wanted} of 1 clip or more')
    return np.asarray(videos)


def check_numbers(numbers: Sequence[int]) -> np.ndarray:
    """Return the numbers of videos as uint32 [B], B >= 1. Raise ConfigError if they are no such numbers."""
    array = np.asarray(numbers)
    whole = array.ndim == 1 and len(array) and array.dtype.kind in 'iu'
    if not whole or array.min() < 0 or array.max() > LARGEST_SEED:
        raise ConfigError(
            f'numbers = {_shown(numbers)} are not numbers of videos: give a list of whole numbers, 0 to {LARGEST_SEED},'
            ' one for each video'
        )
    return array.astype(np.uint32)


def replace_sampler_fields(sampler: SamplerConfig, fields: dict[str, Any], others: Sequence[str] = ()) -> SamplerConfig:
    """Return sampler settings with some fields replaced. NumPy's numbers count as Python's.

    Args:
      sampler: the settings.
      fields: {name: new value}.
      others: names beside the fields that the user may have meant.

    Raises:
      ConfigError: a field is unknown, or its value is not allowed.
    """
    names = [field.name for field in dataclasses.fields(SamplerConfig)]
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(name, [*others, *names], n=1)
            advice = f'did you mean {close[0]!r}? Fields: ' if close else 'choose one of '
            raise ConfigError(f'{name!r} is no sampler field: {advice}{", ".join(names)}')
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
    return replace_fields(sampler, plain)


def _shown(value: Any) -> str:
    """Return a value in at most 40 characters of one line."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= 40 else f'{text[:37]}...'
