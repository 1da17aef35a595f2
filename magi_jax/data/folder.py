"""A folder of video files: file names, frame counts, splits and a cache of decoded frames."""

import concurrent.futures
import hashlib
import inspect
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np

from magi_jax.data import decoding, splits, video_file
from magi_jax.data.cache import cache_folder

SUFFIXES = ('.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
MAX_CACHE_BYTES = 2**30  # maximum bytes of decoded frames in memory, per split


def walk(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the names of all files in `root`, relative to it and sorted.

    Hidden files are left out. Links to folders are followed, except links back to a parent folder. A folder, pipe or
    dead link with the suffix of a video (`suffixes`) is listed too: a later step skips it and gives the reason.
    """
    names, ancestors = [], {str(root): frozenset([os.path.realpath(root)])}
    for folder, folders, files in os.walk(root, followlinks=True):
        entries = [*files, *(name for name in folders if name.lower().endswith(suffixes))]
        names += [os.path.relpath(os.path.join(folder, name), root) for name in entries if not name.startswith('.')]
        parents, entered = ancestors.pop(folder), []
        for name in folders:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if not name.startswith('.') and real not in parents:
                ancestors[path] = parents | {real}
                entered.append(name)
        folders[:] = entered
    return sorted(names)


def splits_from_subfolders(names: Sequence[str]) -> dict[str, str]:
    """Return {name: split} of the files in subfolders train/, validation/ (or val/) and test/; {} if there are none."""
    parts = {name: pathlib.PurePath(name).parts for name in names}
    named = {name: splits.split_name(part[0]) for name, part in parts.items() if len(part) > 1}
    return {name: split for name, split in named.items() if split in splits.SPLITS}


def index(root: pathlib.Path, names: Sequence[str]) -> dict[str, int | str]:
    """Return the number of frames of each file, or the reason why it is unusable.

    Results that depend on the content of a file are cached until the file, or the code that reads it, changes. Other
    failures, such as a missing permission or a failed network, are tried again on each call.
    """
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    cache_path = cache_folder() / 'video_folder' / f'{key}.json'
    cached = json.loads(cache_path.read_text()) if cache_path.exists() else {}
    versions = {name: _file_version(root / name) for name in names}
    new = [name for name in names if name not in cached or cached[name][0] != versions[name]]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        probed = dict(zip(new, pool.map(lambda name: _probe(root / name), new), strict=True))
    to_cache = {name: [versions[name], outcome] for name, (outcome, transient) in probed.items() if not transient}
    if to_cache:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache_path.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps(cached | to_cache))
        temporary.replace(cache_path)
    return {name: probed[name][0] if name in probed else cached[name][1] for name in names}


class FrameCache:
    """Caches the videos of one split: each is decoded completely on its first read. Threads may share it.

    Args:
      decode: function that maps a video number to uint8 [T,H,W,3].
      videos: number of videos.
    """

    def __init__(self, decode: Callable[[int], np.ndarray], videos: int):
        self._decode, self._locks = decode, [threading.Lock() for _ in range(videos)]
        self._videos: dict[int, np.ndarray] = {}

    def read(self, number: int, indices: Sequence[int]) -> np.ndarray:
        """Return the frames at `indices` of a video."""
        with self._locks[number]:
            if number not in self._videos:
                self._videos[number] = self._decode(number)
        return self._videos[number][np.asarray(indices)]


def _file_version(path: pathlib.Path) -> list[Any] | None:
    """Return a value that changes with the file's content and with the code that reads it.

    Return None if the file cannot be accessed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    reader = hashlib.sha256(inspect.getsource(decoding).encode() + av.__version__.encode()).hexdigest()[:8]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, reader]


def _probe(path: pathlib.Path) -> tuple[int | str, bool]:
    """Return the number of frames or the reason why the file is unusable, and True if a retry may succeed."""
    try:
        return video_file.count_frames(path), False
    except OSError as error:
        return str(error), True
    except video_file.VideoError as error:
        return str(error), error.reason in decoding.TRANSIENT_REASONS
