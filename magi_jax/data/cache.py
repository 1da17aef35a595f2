"""The cache folder for computed data: datasets, indices of video folders, features of real clips."""

import pathlib

from magi_jax.fields import expand_path, require_utf8

CACHE = '~/.cache/magi_jax'
_override: list[str] = []


def set_cache_folder(folder: str) -> None:
    """Set the cache folder that replaces `CACHE`. Commands pass $MAGI_JAX_CACHE."""
    _override[:] = [expand_path(folder)]


def cache_folder() -> pathlib.Path:
    """Return the current cache folder.

    Raises:
      ConfigError: the path starts with `~` and the home folder is unknown.
    """
    return pathlib.Path(_override[0] if _override else expand_path(CACHE))


def data_folder(data_dir: str) -> pathlib.Path:
    """Return the folder of TFDS datasets that `data_dir` names; '' = `cache_folder()`.

    Raises:
      ConfigError: its path is not UTF-8.
    """
    folder = pathlib.Path(expand_path(data_dir)) if data_dir else cache_folder()
    require_utf8(folder)
    return folder
