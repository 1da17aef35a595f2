"""The output folder of launch.sample and launch.sample_prompts.

Files of another call are never overwritten, and two calls are never mixed.
"""

import contextlib
import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magi_jax.config import ConfigError, MagiSamplerConfig

LOCK, DRAFT, SETTINGS = '.sampling.lock', '.unfinished', 'settings.json'
OUTPUT_NAMES = re.compile(r'\d+\.(mp4|gif)|videos\.npz|settings\.json')
BATCH_OUTPUT_NAMES = re.compile(r'\d{6,}\.mp4|settings\.json')
PROMPT_OUTPUT_NAMES = re.compile(r'.+-\d+\.mp4|settings\.json')  # of launch.sample_prompts


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` if it does not exist, and lock it against other calls of launch.sample.

    After an error, remove the folders that this call made and that are still empty.

    Raises:
      ConfigError: `folder` is a file, or another call is writing to it.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
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
        for path in new_folders:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def check_no_videos(folder: Path) -> None:
    """Raise ConfigError if `folder` holds videos of launch.sample."""
    if files := _output_files(folder):
        raise ConfigError(f'{folder} holds files of another call ({_first_names(files)}): give another --out')


@contextlib.contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; move its files to `folder` when the block ends without an error."""
    draft = folder / DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed call
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.iterdir()):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_settings(folder: Path, settings: dict[str, Any], names: re.Pattern[str] = BATCH_OUTPUT_NAMES) -> None:
    """Write the settings of the videos in a folder, and remove partial files of an interrupted call.

    Args:
      folder: an existing folder.
      settings: what the videos depend on, with workdir, seed and frames.
      names: names of the files that this kind of call writes.

    Raises:
      ConfigError: the folder holds videos with other settings, or videos that another kind of call wrote.
    """
    path, files = folder / SETTINGS, _output_files(folder, names)
    videos = [name for name in files if name != SETTINGS]
    if any(not names.fullmatch(name) for name in files) or (videos and SETTINGS not in files):
        raise ConfigError(f'{folder} holds files of another call ({_first_names(files)}): give another --out')
    if SETTINGS in files:
        before = _defaults() | _read(path)
        for name in settings if videos else ():  # without videos, settings of an earlier call do not matter
            if settings[name] != before.get(name):
                change = f'{name} = {before.get(name)!r}, not {settings[name]!r}'
                raise ConfigError(f'{folder} holds videos sampled with {change}: give another --out')
    for partial in folder.glob('.*.mp4.*'):
        partial.unlink()
    draft = path.with_name(f'.{path.name}')
    draft.write_text(json.dumps(settings, indent=1) + '\n')
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """Return the settings of a file."""
    try:
        settings = json.loads(path.read_text())
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not {'workdir', 'seed', 'frames'} <= set(settings):
        raise ConfigError(f'{path} was not written by launch.sample: give another --out')
    return settings


def _defaults() -> dict[str, Any]:
    """Return values of settings that are newer than a file: it was written by MAGI, without these settings."""
    sampler = dataclasses.asdict(MagiSamplerConfig())
    return {f'sampler.{name}': value for name, value in sampler.items()} | {'prompt': None, 'size': None}


def _output_files(folder: Path, names: re.Pattern[str] = OUTPUT_NAMES) -> list[str]:
    """Return the names of the files in `folder` that launch.sample could have written, and of `names`, sorted."""
    found = [path.name for path in folder.iterdir()]
    return sorted(name for name in found if OUTPUT_NAMES.fullmatch(name) or names.fullmatch(name))


def _first_names(names: list[str]) -> str:
    """Format the first two names, and '...' if there are more."""
    return ', '.join(names[:2]) + ', ...' * (len(names) > 2)
