"""Assigns the videos of a folder to training, validation and test, unless the user has sorted them."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping

from absl import logging

SPLITS = ('train', 'validation', 'test')
# Frames that each split should have: the default of `data.frames` and of min_frames in launch.prepare_data.
CLIP_FRAMES = 16
SPLIT_HINT = f'to choose yourself, sort the files into subfolders {" ".join(f"{split}/" for split in SPLITS)}'
_ALIASES = {'val': 'validation', 'valid': 'validation', 'validate': 'validation', 'training': 'train'}


def split_name(name: str) -> str:
    """Return the standard name of a split: 'val' -> 'validation'."""
    return _ALIASES.get(name.lower(), name.lower())


def hashed_split(name: str) -> str:
    """Return the split given by the hash of a name: 90 % train, 5 % validation, 5 % test."""
    percent = _fraction(name) * 100 >> 64
    return 'train' if percent < 90 else 'validation' if percent < 95 else 'test'


def assign(names: Iterable[str], usable: Callable[[str], bool]) -> dict[str, str | None]:
    """Return the split of each file, so that every split has a usable video.

    Each name goes to its `hashed_split`. Then a split without a usable video takes one from a split that has at least
    two. Validation and test take the video with the highest hash, from train if possible. Train takes the video with
    the lowest hash.

    A file added later moves at most one earlier file per split, and moves get rarer as the folder grows. A moved video
    returns when its new split gets a video by hash, or is replaced by a new video with a higher hash.

    Args:
      names: relative names of the files.
      usable: function that returns True if a file has a clip. Few files are tried, so it may decode them.

    Returns:
      {name: split}. With only one or two usable files, their split is None: divide them by `time_ranges`. Without
      usable files, the hashed splits.
    """
    order = sorted(names, key=_fraction)
    splits: dict[str, str | None] = {name: hashed_split(name) for name in order}
    usable = functools.cache(usable)

    def can_leave(name: str) -> bool:
        rest = (other for other in order if other != name and splits[other] == splits[name])
        return usable(name) and any(map(usable, rest))

    for split in reversed(SPLITS):
        if any(usable(name) for name in order if splits[name] == split):
            continue
        highest_first = list(reversed(order))
        train_names = [name for name in highest_first if splits[name] == 'train']
        candidates = order if split == 'train' else [*train_names, *highest_first]
        moved = next((name for name in candidates if splits[name] != split and can_leave(name)), None)
        if moved is None:  # one or two usable videos, or none
            return {name: None if usable(name) else hashed_split(name) for name in order}
        splits[moved] = split
    return splits


def time_ranges(frames: int, clip: int = CLIP_FRAMES, align: int = 1) -> dict[str, tuple[int, int]]:
    """Return disjoint frame ranges [start, stop) of one video.

    The last tenth is test, the tenth before it is validation, and the rest is train.

    Args:
      frames: number of frames of the video.
      clip: minimum number of frames of validation and test. In a short video they get a third of it instead.
      align: train and validation end at a multiple of this number of frames.
    """
    size = max(frames // 10, min(clip, frames // 3))
    test = (frames - size) // align * align
    validation = (test - size) // align * align
    return {'train': (0, validation), 'validation': (validation, test), 'test': (test, frames)}


def explain(root: str | os.PathLike, splits: Mapping[str, str | None]) -> str:
    """Return one line on how `assign` differs from the hash and how to choose splits; '' if it does not differ."""
    if divided := sorted(name for name, split in splits.items() if split is None):
        parts = f'train, validation and test are three parts of {" and of ".join(divided)}'
        return f'{root} has too few usable videos for three splits: {parts}; {SPLIT_HINT}'
    moved = sorted(f'{split} = {name}' for name, split in splits.items() if split != hashed_split(name))
    return f'{root}: the hash of the names leaves a split empty: {", ".join(moved)}; {SPLIT_HINT}' if moved else ''


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, but only the first time that this process logs the same text."""
    logging.warning('%s', text)


def _fraction(name: str) -> int:
    """Hash a name to an integer in [0, 2**64)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8])
