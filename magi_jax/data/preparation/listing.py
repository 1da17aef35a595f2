"""Lists the rows of a dataset, one for each video, from a folder, a CSV file or the files of a public dataset.

No file is opened here, except by `usable`. Rows that are known to be impossible become skips: two rows with one id, or
annotated clips that are not on the disk. So rows = prepared + skipped holds to the end.
"""

import csv
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from magi_jax.config import ConfigError
from magi_jax.data import folder, splits
from magi_jax.data.decoding import file_text
from magi_jax.data.preparation.reencode import Reason

SUFFIXES = (
    *folder.SUFFIXES,
    *('.3gp', '.asf', '.divx', '.f4v', '.flv', '.m2ts', '.mpe', '.mpv', '.mts', '.ogv', '.ts', '.vob', '.wmv', '.y4m'),
)
Usable = Callable[[pathlib.Path], bool]


@dataclasses.dataclass(frozen=True)
class Row:
    """One video of a listing. Its file may turn out to be unusable."""

    video_id: str  # unique in the dataset
    path: str  # relative to the root of the listing
    split: str
    label: str | None = None
    offset: int | None = None  # byte offset of a record in the file `path`; None = the file is the video
    divided: bool = False  # True: the row is only the range of `splits.time_ranges` for its split

    def as_tuple(self) -> tuple[Any, ...]:
        """Return the fields for a digest. `divided` is left out if False, so that older digests stay valid."""
        fields = dataclasses.astuple(self)
        return fields if self.divided else fields[:-1]


@dataclasses.dataclass(frozen=True)
class Skip:
    """A row that will not be in the dataset, with the reason."""

    video_id: str
    path: str
    split: str
    reason: Reason
    detail: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """All rows of a dataset."""

    root: str  # folder that the paths are relative to
    rows: tuple[Row, ...]
    skipped: tuple[Skip, ...] = ()
    labels: tuple[str, ...] = ()  # class names, in the order of their numbers; () = no labels
    ignored: tuple[str, ...] = ()  # files that are not videos, or not in the annotations
    warning: str = ''  # how splits were chosen, if the hash of the names leaves one empty

    def __len__(self) -> int:
        return len(self.rows) + len(self.skipped)


def list_source(source: str, usable: Usable = lambda _: True) -> Listing:
    """List the videos of a folder or of a CSV file.

    A folder: subfolders train/, validation/ (or val/) and test/ are the splits if one of them exists, else
    `splits.assign` chooses. If every video is in a folder of its split, those folders are the labels.

    A CSV file: column path (relative to the file's folder), and optional columns id, label, split.

    Args:
      source: folder or file.
      usable: function that returns True if the file at an absolute path can be prepared. `splits.assign` calls it for
        a few files.

    Raises:
      ConfigError: the folder or file is missing, it holds no videos, or a column or value is missing.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return _list_folder(path, usable)
    if path.is_file() and path.suffix.lower() == '.csv':
        return _list_csv(path, usable)
    raise ConfigError(f'source {source!r} is neither a folder nor a .csv file: give one of them')


def make_listing(
    root: pathlib.Path, rows: Iterable[Row], labels: Sequence[str] | None = None, ignored: Iterable[str] = ()
) -> Listing:
    """Make a listing of rows, without repeated ids, in the order of storage.

    The order is that of a hash of the ids, so that the first videos of a split are a fair sample of it.

    Args:
      root: folder that the paths are relative to.
      rows: rows of all videos. A row with a repeated id is skipped.
      labels: class names in the order of their numbers; None = the sorted names in `rows`.
      ignored: ignored files, as in `Listing`.

    Raises:
      ConfigError: there are no rows, TFDS does not allow the name of a split, or a label is not in `labels`.
    """
    by_id: dict[str, Row] = {}
    skipped = []
    for row in rows:
        # Ids and labels are stored as text. Only `path` keeps the bytes of the name, which open the file.
        row = dataclasses.replace(row, video_id=file_text(row.video_id), label=row.label and file_text(row.label))
        if not re.fullmatch(r'[A-Za-z]\w*', row.split):
            raise ConfigError(f'split {row.split!r} of {row.path} is not a valid name: use letters, digits and _')
        if row.video_id in by_id:
            other = by_id[row.video_id]
            detail = f'{file_text(other.path)} in split {other.split} has the same id'
            skipped.append(Skip(row.video_id, file_text(row.path), row.split, 'duplicate_id', detail))
        else:
            by_id[row.video_id] = row
    if not by_id:
        raise ConfigError(f'{root} has no video files: add files with suffix {" ".join(SUFFIXES)}')
    found = {row.label for row in by_id.values()} - {None}
    names = tuple(sorted(found) if labels is None else labels)
    if unknown := found - set(names):
        raise ConfigError(f'{root}: label {min(unknown)!r} is not one of the {len(names)} classes: correct it')
    ordered = sorted(by_id.values(), key=lambda row: (row.split, hashlib.sha256(os.fsencode(row.video_id)).digest()))
    return Listing(str(root), tuple(ordered), tuple(skipped), names, tuple(sorted(map(file_text, ignored))))


def walk(root: pathlib.Path) -> list[str]:
    """Return the files of a folder, see `folder.walk`."""
    return folder.walk(root, SUFFIXES)


def is_video(name: str) -> bool:
    """Return True if a file name has the suffix of a video."""
    return name.lower().endswith(SUFFIXES)


def _list_folder(root: pathlib.Path, usable: Usable) -> Listing:
    files = walk(root)
    names = [name for name in files if is_video(name)]
    user_splits = folder.splits_from_subfolders(names)
    if user_splits:  # files outside the split folders belong to no split
        names = [name for name in names if name in user_splits]
    assignment = user_splits or splits.assign(names, lambda name: usable(root / name))
    parts = {name: pathlib.PurePath(name).parts for name in names}
    depth = 1 if user_splits else 0
    labelled = all(len(parts[name]) > depth + 1 for name in names)
    rows = [
        row
        for name in names
        for row in _divide(Row(name, name, '', parts[name][depth] if labelled else None), assignment[name])
    ]
    listing = make_listing(root, rows, ignored=set(files) - set(names))
    return listing if user_splits else dataclasses.replace(listing, warning=splits.explain(root, assignment))


def _divide(row: Row, split: str | None) -> list[Row]:
    """Return the row in its split, or one row per split if `split` is None."""
    if split is not None:
        return [dataclasses.replace(row, split=split)]
    ranges = {name: f'{row.video_id} ({name})' for name in splits.SPLITS}
    return [dataclasses.replace(row, split=name, video_id=part, divided=True) for name, part in ranges.items()]


def _list_csv(path: pathlib.Path, usable: Usable) -> Listing:
    # File names may be bytes that are not valid UTF-8.
    with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames or []
        if 'path' not in columns:
            found = ', '.join(columns) or 'nothing'
            raise ConfigError(f'{path} has no column `path`, its first line has {found}: add the column')
        if unknown := set(columns) - {'path', 'label', 'split', 'id'}:
            raise ConfigError(f'{path} has a column {min(unknown)!r}: use only path, label, split, id')
        lines = [{key: (value or '').strip() for key, value in line.items() if key} for line in reader]
    for number, line in enumerate(lines, 2):
        if not line['path']:
            raise ConfigError(f'line {number} of {path} has no path: add it or delete the line')
    has_splits = any(line.get('split') for line in lines)
    paths = {line['path'] for line in lines}
    assignment = splits.assign(paths, lambda name: not has_splits and usable(path.parent / name))
    rows = []
    for line in lines:
        row = Row(line.get('id') or line['path'], line['path'], '', line.get('label') or None)
        rows += _divide(row, splits.split_name(line.get('split', '')) or assignment[line['path']])
    unlabelled = sum(not line.get('label') for line in lines)
    if 'label' in columns and 0 < unlabelled < len(lines):
        raise ConfigError(f'{path}: {unlabelled} of {len(lines)} rows have no label: label all of them or none')
    listing = make_listing(path.parent, rows)
    return listing if has_splits else dataclasses.replace(listing, warning=splits.explain(path, assignment))
