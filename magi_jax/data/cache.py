"""The folder of everything that is made once: datasets, indices of video folders, features of real clips."""

import pathlib

from magi_jax.fields import expand_path, require_utf8

CACHE = '~/.cache/magi_jax'
_moved: list[str] = []


def move_cache(folder: str) -> None:
    """Use `folder` in place of `CACHE` from now on. Commands call it with $MAGI_JAX_CACHE."""
    _moved[:] = [expand_path(folder)]


def cache_folder() -> pathlib.Path:
    """Return the folder in use.

    Raises:
      ConfigError: it lies in a home folder that is unknown.
    """
    return pathlib.Path(_moved[0] if _moved else expand_path(CACHE))


def data_folder(data_dir: str) -> pathlib.Path:
    """Return the folder of TFDS datasets that `data_dir` names; '' = `cache_folder()`.

    Raises:
      ConfigError: its path is not UTF-8.
    """
    folder = pathlib.Path(expand_path(data_dir)) if data_dir else cache_folder()
    require_utf8(folder)
    return folder
