"""What is to be prepared: one row for each video, from a folder, a CSV file or the files of a public dataset.

Nothing is opened here. What the rows already tell to be impossible (two rows with one id, annotated clips that are not
on the disk) becomes a skip, so that rows = prepared + skipped holds to the end.
"""

import csv
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from magi_jax.config import ConfigError
from magi_jax.data import sources
from magi_jax.data.decoding import file_text
from magi_jax.data.preparation.reencode import Reason

SUFFIXES = (
    *sources.SUFFIXES,
    *('.3gp', '.asf', '.divx', '.f4v', '.flv', '.m2ts', '.mpe', '.mpv', '.mts', '.ogv', '.ts', '.vob', '.wmv', '.y4m'),
)
_SPLIT_NAMES = {'val': 'validation', 'valid': 'validation', 'validate': 'validation', 'training': 'train'}


@dataclasses.dataclass(frozen=True)
class Row:
    """One video that somebody says there is."""

    video_id: str  # unique in the dataset
    path: str  # relative to the root of the listing
    split: str
    label: str | None = None
    offset: int | None = None  # of a record in the file `path`; None = the file is the video


@dataclasses.dataclass(frozen=True)
class Skip:
    """A row that will not be in the dataset, and why."""

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
    labels: tuple[str, ...] = ()  # names of the classes, in the order of their numbers; () = not labelled
    ignored: tuple[str, ...] = ()  # files that are no videos, or not in the annotations

    def __len__(self) -> int:
        return len(self.rows) + len(self.skipped)


def list_source(source: str) -> Listing:
    """The videos of a folder or of a CSV file.

    A folder: subfolders train/, validation/ (or val/), test/ are the splits if there is one of them, else a file's
    name decides (90/5/5 %). If every video is in a folder of its split, those folders are the labels.
    A CSV file: columns path (relative to the file's folder), and if wanted id, label, split.

    Raises:
      ConfigError: there is no such folder or file, it holds no videos, or a column or value is missing.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return _list_folder(path)
    if path.is_file() and path.suffix.lower() == '.csv':
        return _list_csv(path)
    raise ConfigError(f'source {source!r} is neither a folder nor a .csv file')


def make_listing(
    root: pathlib.Path, rows: Iterable[Row], labels: Sequence[str] | None = None, ignored: Iterable[str] = ()
) -> Listing:
    """Rows with their repetitions taken out, in the order they will be stored in.

    The order is that of a hash of the ids, so that the first videos of a split are a fair sample of it.

    Args:
      root: folder that the paths are relative to.
      rows: an id that comes again is skipped.
      labels: names in the order of their numbers; None = the names in `rows`, sorted.
      ignored: as in `Listing`.

    Raises:
      ConfigError: there are no rows, a split has a name that TFDS cannot have, or a label is not in `labels`.
    """
    first: dict[str, Row] = {}
    skipped = []
    for row in rows:
        # Ids and labels are stored as text; only `path` keeps the bytes of the name, to open the file.
        row = dataclasses.replace(row, video_id=file_text(row.video_id), label=row.label and file_text(row.label))
        if not re.fullmatch(r'[A-Za-z]\w*', row.split):
            raise ConfigError(f'split {row.split!r} of {row.path} is not a name of letters, digits and _')
        if row.video_id in first:
            other = first[row.video_id]
            detail = f'{file_text(other.path)} in split {other.split} has the same id'
            skipped.append(Skip(row.video_id, file_text(row.path), row.split, 'duplicate_id', detail))
        else:
            first[row.video_id] = row
    if not first:
        raise ConfigError(f'{root} has no video files ({" ".join(SUFFIXES)})')
    found = {row.label for row in first.values()} - {None}
    names = tuple(sorted(found) if labels is None else labels)
    if unknown := found - set(names):
        raise ConfigError(f'{root}: label {min(unknown)!r} is not one of the {len(names)} classes of the dataset')
    kept = sorted(first.values(), key=lambda row: (row.split, hashlib.sha256(row.video_id.encode()).digest()))
    return Listing(str(root), tuple(kept), tuple(skipped), names, tuple(sorted(map(file_text, ignored))))


def walk(root: pathlib.Path) -> list[str]:
    """Names, relative to `root` and sorted, of all its files; follows links to folders, leaves out hidden files."""
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        # A folder, a pipe or a dead link named like a video is listed too: it will be skipped with its reason.
        entries = [*files, *(name for name in folders if is_video(name))]
        names += [os.path.relpath(os.path.join(folder, name), root) for name in entries if not name.startswith('.')]
    return sorted(names)


def is_video(name: str) -> bool:
    """Whether a file's name ends like that of a video."""
    return name.lower().endswith(SUFFIXES)


def split_name(name: str) -> str:
    """A split's name as this project has it: 'val' -> 'validation'."""
    return _SPLIT_NAMES.get(name.lower(), name.lower())


def _list_folder(root: pathlib.Path) -> Listing:
    files = walk(root)
    names = [name for name in files if is_video(name)]
    parts = {name: pathlib.PurePath(name).parts for name in names}
    sorted_by_user = any(len(p) > 1 and split_name(p[0]) in sources.SPLITS for p in parts.values())
    if sorted_by_user:  # what lies beside the split folders belongs to no split
        names = [name for name in names if len(parts[name]) > 1 and split_name(parts[name][0]) in sources.SPLITS]
    depth = 1 if sorted_by_user else 0
    labelled = all(len(parts[name]) > depth + 1 for name in names)
    rows = (
        Row(
            name,
            name,
            split_name(parts[name][0]) if sorted_by_user else sources.hashed_split(name),
            parts[name][depth] if labelled else None,
        )
        for name in names
    )
    return make_listing(root, rows, ignored=set(files) - set(names))


def _list_csv(path: pathlib.Path) -> Listing:
    # Names of files are bytes.
    with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames or []
        if 'path' not in columns:
            raise ConfigError(f'{path} has no column `path`; its first line says: {", ".join(columns) or "nothing"}')
        if unknown := set(columns) - {'path', 'label', 'split', 'id'}:
            raise ConfigError(f'{path} has a column {min(unknown)!r}; it may have: path, label, split, id')
        lines = [{key: (value or '').strip() for key, value in line.items() if key} for line in reader]
    rows = []
    for number, line in enumerate(lines, 2):
        if not line['path']:
            raise ConfigError(f'line {number} of {path} has no path')
        split = split_name(line.get('split', '')) or sources.hashed_split(line['path'])
        rows.append(Row(line.get('id') or line['path'], line['path'], split, line.get('label') or None))
    unlabelled = sum(row.label is None for row in rows)
    if 'label' in columns and 0 < unlabelled < len(rows):
        raise ConfigError(f'{path}: {unlabelled} of {len(rows)} rows have no label; label all of them or none')
    return make_listing(path.parent, rows)
