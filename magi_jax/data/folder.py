"""A folder of video files: their names, how many frames each has, their splits, and frames that are kept decoded."""

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
MEMORY = 2**30  # bytes of decoded frames that one split keeps


def walk(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the names, relative to `root` and sorted, of all its files.

    Links to folders are followed, unless they lead back to a folder that they are in; hidden files are left out.
    A folder, a pipe or a dead link named like a video (`suffixes`) is listed too: it is skipped later, with its reason.
    """
    names, above = [], {str(root): frozenset([os.path.realpath(root)])}
    for folder, folders, files in os.walk(root, followlinks=True):
        entries = [*files, *(name for name in folders if name.lower().endswith(suffixes))]
        names += [os.path.relpath(os.path.join(folder, name), root) for name in entries if not name.startswith('.')]
        parents, kept = above.pop(folder), []
        for name in folders:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if not name.startswith('.') and real not in parents:
                above[path] = parents | {real}
                kept.append(name)
        folders[:] = kept
    return sorted(names)


def sort_by_user(names: Sequence[str]) -> dict[str, str]:
    """Return {name: split} of the files in subfolders train/, validation/ (or val/), test/; {} where there are none."""
    parts = {name: pathlib.PurePath(name).parts for name in names}
    named = {name: splits.split_name(part[0]) for name, part in parts.items() if len(part) > 1}
    return {name: split for name, split in named.items() if split in splits.SPLITS}


def index(root: pathlib.Path, names: Sequence[str]) -> dict[str, int | str]:
    """Return the number of frames of each file, or why it is unusable.

    Files are decoded once. What depends on their content is remembered until they, or the code that reads them, change;
    what may pass (no permission, a network that fails) is tried again each time.
    """
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    memory = cache_folder() / 'video_folder' / f'{key}.json'
    known = json.loads(memory.read_text()) if memory.exists() else {}
    stamps = {name: _stamp(root / name) for name in names}
    new = [name for name in names if name not in known or known[name][0] != stamps[name]]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        probed = dict(zip(new, pool.map(lambda name: _probe(root / name), new), strict=True))
    lasting = {name: [stamps[name], outcome] for name, (outcome, passing) in probed.items() if not passing}
    if lasting:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps(known | lasting))
        temporary.replace(memory)
    return {name: probed[name][0] if name in probed else known[name][1] for name in names}


class FrameMemory:
    """Videos of one split, each decoded whole at its first reading and kept. Threads may share it.

    Args:
      decode: video number -> uint8 [T,H,W,3].
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


def _stamp(path: pathlib.Path) -> list[Any] | None:
    """Return what changes with a file's content or with the code that reads it; None where the file cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    reader = hashlib.sha256(inspect.getsource(decoding).encode() + av.__version__.encode()).hexdigest()[:8]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, reader]


def _probe(path: pathlib.Path) -> tuple[int | str, bool]:
    """Return the number of frames or the reason against the file, and whether that reason may pass."""
    try:
        return video_file.count_frames(path), False
    except OSError as error:
        return str(error), True
    except video_file.VideoError as error:
        return str(error), error.reason in decoding.PASSING
