"""The folder that launch.sample writes to: no file of another call is overwritten, and calls are never mixed."""

import contextlib
import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magi_jax.config import ConfigError, SamplerConfig

LOCK, DRAFT, SETTINGS = '.sampling.lock', '.unfinished', 'settings.json'
MADE = re.compile(r'\d+\.(mp4|gif)|videos\.npz|settings\.json')
MADE_IN_BATCHES = re.compile(r'\d{6,}\.mp4|settings\.json')


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` if it is not there, and hold it against other calls of launch.sample.

    After an error, folders that were made for this call and stayed empty are removed.

    Raises:
      ConfigError: it is a file, or another call is writing to it.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'{folder} is a file: give a folder as --out')
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(folder / LOCK, 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f'another launch.sample is writing to {folder}: give another --out') from error
            try:
                yield
            finally:
                (folder / LOCK).unlink()
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def check_no_videos(folder: Path) -> None:
    """Raise ConfigError if `folder` holds videos of launch.sample."""
    if made := _made(folder):
        raise ConfigError(f'{folder} holds files of another call ({_shown(made)}): give another --out')


@contextlib.contextmanager
def all_at_once(folder: Path) -> Iterator[Path]:
    """Give an empty folder; its files are moved to `folder` when the block ends, unless by an error."""
    draft = folder / DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # of a call that was killed
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.iterdir()):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what the videos of a folder are, and remove files that a killed call left half-written.

    Raises:
      ConfigError: the folder holds videos that were made with other settings, or not by --batch or --stream.
    """
    path, made = folder / SETTINGS, _made(folder)
    videos = [name for name in made if name != SETTINGS]
    if any(not MADE_IN_BATCHES.fullmatch(name) for name in made) or (videos and SETTINGS not in made):
        raise ConfigError(f'{folder} holds files of another call ({_shown(made)}): give another --out')
    if SETTINGS in made:
        before = _read(path)
        for name in settings if videos else ():  # a call that was killed before its first video left nothing to keep
            if settings[name] != before.get(name):
                change = f'{name} = {before.get(name)!r}, not {settings[name]!r}'
                raise ConfigError(f'{folder} holds videos made with {change}: give another --out')
    for half in folder.glob('.*.mp4.*'):
        half.unlink()
    draft = path.with_name(f'.{path.name}')
    draft.write_text(json.dumps(settings, indent=1) + '\n')
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """Return the settings of a file; those that it is too old to have are the defaults."""
    try:
        settings = json.loads(path.read_text())
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not {'workdir', 'seed', 'frames'} <= set(settings):
        raise ConfigError(f'{path} was not written by launch.sample: give another --out')
    defaults = {f'sampler.{field.name}': field.default for field in dataclasses.fields(SamplerConfig)}
    return defaults | settings


def _made(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that launch.sample may have made, ascending."""
    return sorted(path.name for path in folder.iterdir() if MADE.fullmatch(path.name))


def _shown(names: list[str]) -> str:
    return ', '.join(names[:2]) + ', ...' * (len(names) > 2)
