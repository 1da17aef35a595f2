"""Which videos of a folder are for training, validation and test, where the user has not sorted them."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping

from absl import logging

SPLITS = ('train', 'validation', 'test')
CLIP = 16  # frames that each split should have: the default of `data.frames` and of launch.prepare_data's min_frames
CHOOSE = f'to choose yourself, sort the files into subfolders {" ".join(f"{split}/" for split in SPLITS)}'
_ALIASES = {'val': 'validation', 'valid': 'validation', 'validate': 'validation', 'training': 'train'}


def split_name(name: str) -> str:
    """Return a split's name as this project has it: 'val' -> 'validation'."""
    return _ALIASES.get(name.lower(), name.lower())


def hashed_split(name: str) -> str:
    """Return the split of a name: 90 % of all names train, 5 % validation, 5 % test."""
    percent = _fraction(name) * 100 >> 64
    return 'train' if percent < 90 else 'validation' if percent < 95 else 'test'


def assign(names: Iterable[str], usable: Callable[[str], bool]) -> dict[str, str | None]:
    """Return the split of each file, so that no split is left without a usable video.

    Every name goes where `hashed_split` puts it. A split without a usable video takes one whole video from a split that
    keeps another: validation and test that of the highest hash, from train if possible, train that of the lowest.
    A file added later moves at most one earlier file for each split, and that ever more rarely: a taken video goes back
    when its split gets one by hash, or changes place with a new one of higher hash.

    Args:
      names: relative names of the files.
      usable: whether a file has a clip; called for as few files as possible, so it may decode them.

    Returns:
      {name: split}; None for the split of a usable file where there are only one or two: divide these by `time_ranges`.
      Without a usable file, the hashed splits.
    """
    order = sorted(names, key=_fraction)
    splits: dict[str, str | None] = {name: hashed_split(name) for name in order}
    usable = functools.cache(usable)

    def spare(name: str) -> bool:
        rest = (other for other in order if other != name and splits[other] == splits[name])
        return usable(name) and any(map(usable, rest))

    for split in reversed(SPLITS):
        if any(usable(name) for name in order if splits[name] == split):
            continue
        highest_first = list(reversed(order))
        from_train = [name for name in highest_first if splits[name] == 'train']
        candidates = order if split == 'train' else [*from_train, *highest_first]
        taken = next((name for name in candidates if splits[name] != split and spare(name)), None)
        if taken is None:  # one or two usable videos, or none
            return {name: None if usable(name) else hashed_split(name) for name in order}
        splits[taken] = split
    return splits


def time_ranges(frames: int, clip: int = CLIP, align: int = 1) -> dict[str, tuple[int, int]]:
    """Return disjoint ranges [start, stop) of one video: its last tenths are test and validation, the rest is train.

    Args:
      frames: of the video.
      clip: validation and test get this many frames, or a third of the video, where a tenth is less.
      align: train and validation end at a multiple of it.
    """
    size = max(frames // 10, min(clip, frames // 3))
    test = (frames - size) // align * align
    validation = (test - size) // align * align
    return {'train': (0, validation), 'validation': (validation, test), 'test': (test, frames)}


def explain(root: str | os.PathLike, splits: Mapping[str, str | None]) -> str:
    """Return one line on how `assign` differs from the hash, and how to choose; '' where it does not."""
    if divided := sorted(name for name, split in splits.items() if split is None):
        parts = f'train, validation and test are three parts of {" and of ".join(divided)}'
        return f'{root} has too few usable videos for three splits: {parts}; {CHOOSE}'
    taken = sorted(f'{split} = {name}' for name, split in splits.items() if split != hashed_split(name))
    return f'{root}: the hash of the names leaves a split empty: {", ".join(taken)}; {CHOOSE}' if taken else ''


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning the first time that this process gives it."""
    logging.warning('%s', text)


def _fraction(name: str) -> int:
    """Return the hash of a name as an integer in [0, 2**64)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8])
