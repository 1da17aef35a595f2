"""Checks of the arguments that a user passes to a generator. Messages have the form `what is wrong: what to do`."""

import dataclasses
import difflib
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import ConfigError, SamplerConfig, replace_fields

MAX_SEED = 2**32 - 1  # jax.random.key keeps 32 bits, so a larger seed would equal a smaller one


def check_whole(name: str, value: Any, low: int, high: int | None = None, reason: str = '') -> int:
    """Return `value` as an int.

    Args:
      name: name of the argument.
      value: value from the user.
      low: smallest allowed value.
      high: largest allowed value; None for no limit.
      reason: explanation to add to the message.

    Raises:
      ConfigError: the value is not a whole number, or out of range.
    """
    allowed = f'{low} or more' if high is None else f'{low} to {high}'
    advice = f'give a whole number, {allowed}{reason and f" ({reason})"}'
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ConfigError(f'{name} = {_shorten(value)} is not a whole number: {advice}') from error
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise ConfigError(f'{name} = {value} is out of range: {advice}')
    return number


def check_seed(seed: Any) -> int:
    """Return `seed` as an int. Raise ConfigError unless a key can hold all its bits."""
    return check_whole('seed', seed, 0, MAX_SEED)


def check_videos(name: str, videos: Any, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Return `videos` as a NumPy array uint8 [B, T, H, W, 3] with B >= 1.

    Args:
      name: name of the argument.
      videos: value from the user.
      height: required H; None for any.
      width: required W; None for any.

    Raises:
      ConfigError: the array has another shape or dtype; the message says how to convert it.
    """
    expected = f'uint8 [clips, frames, {height or "height"}, {width or "width"}, 3]'
    if not isinstance(videos, np.ndarray | jax.Array):
        raise ConfigError(f'{name} is a {type(videos).__name__}: give an array {expected}, np.stack(list) for a list')
    found = f'{videos.dtype} [{", ".join(map(str, videos.shape))}]'
    if videos.ndim != 5 or videos.shape[-1] != 3:
        advice = {3: f', for one frame {name}[None, None]', 4: f', for one clip {name}[None]'}.get(videos.ndim, '')
        raise ConfigError(f'{name} is {found}: give {expected}{advice}')
    if height and videos.shape[2:4] != (height, width):
        advice = f'for a clip magi_jax.data.video_file.fit(clip, {height}, {width})'
        raise ConfigError(f'{name} is {found}, not {expected}: resize its frames, {advice}')
    if videos.dtype != np.uint8:
        floats = jnp.issubdtype(videos.dtype, jnp.floating)
        advice = f'np.uint8(np.round(255 * {name})) for values in 0..1' if floats else f'{name}.astype(np.uint8)'
        raise ConfigError(f'{name} is {found}, not {expected}: give values in 0..255 as uint8, {advice}')
    if not len(videos):
        raise ConfigError(f'{name} is {found}, without clips: give {expected} with 1 clip or more')
    return np.asarray(videos)


def check_numbers(numbers: Sequence[int]) -> np.ndarray:
    """Return the numbers of videos as uint32 [B] with B >= 1. Raise ConfigError for anything else."""
    array = np.asarray(numbers)
    whole = array.ndim == 1 and len(array) and array.dtype.kind in 'iu'
    if not whole or array.min() < 0 or array.max() > MAX_SEED:
        raise ConfigError(
            f'numbers = {_shorten(numbers)} are not numbers of videos: give a list of whole numbers from 0 to'
            f' {MAX_SEED}, one for each video'
        )
    return array.astype(np.uint32)


def replace_sampler_fields(sampler: SamplerConfig, fields: dict[str, Any], others: Sequence[str] = ()) -> SamplerConfig:
    """Return sampler settings with some fields replaced. NumPy scalars are accepted.

    Args:
      sampler: the settings.
      fields: {name: new value}.
      others: names of other arguments, for suggestions.

    Raises:
      ConfigError: a field is unknown, or its value is not allowed.
    """
    names = [field.name for field in dataclasses.fields(sampler)]
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(name, [*others, *names], n=1)
            advice = f'did you mean {close[0]!r}? Fields: ' if close else 'choose one of '
            raise ConfigError(f'{name!r} is not a sampler field: {advice}{", ".join(names)}')
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
    return replace_fields(sampler, plain)


def _shorten(value: Any) -> str:
    """Return a value as one line of at most 40 characters."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= 40 else f'{text[:37]}...'
