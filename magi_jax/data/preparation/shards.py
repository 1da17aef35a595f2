"""Shards of a dataset in the making: which videos go where, written whole or not at all, each with a report.

A shard's report appears after the shard. What has a report is not done again: that is what a run that was killed goes
on from, and, as nothing depends on which process did what, its end is the same bytes as without the kill. Only rows
skipped for a reason that may pass (`decoding.PASSING`) are tried again by every run.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from magi_jax.data import decoding, prepared
from magi_jax.data.preparation.listing import Listing, Row, Skip
from magi_jax.data.preparation.reencode import Settings


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a split: one file of the dataset."""

    folder: pathlib.Path
    name: str  # of the dataset, without its variant
    split: str
    number: int
    count: int  # of shards of the split
    rows: tuple[Row, ...] = ()

    @property
    def path(self) -> pathlib.Path:
        return self.folder / f'{self.name}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}'

    @property
    def report(self) -> pathlib.Path:
        return self.folder / 'reports' / f'{self.split}-{self.number:05d}.json'

    def is_done(self) -> bool:
        return self.report.is_file()


def make_shards(name: str, folder: pathlib.Path, listing: Listing, settings: Settings) -> list[Shard]:
    """The rows of a listing, divided: a function of the listing and settings alone."""
    by_split: dict[str, list[Row]] = {}
    for row in listing.rows:
        by_split.setdefault(row.split, []).append(row)
    shards, size = [], settings.videos_per_shard
    for split, rows in by_split.items():
        parts = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
        shards += [Shard(folder, name.split('/')[0], split, n, len(parts), part) for n, part in enumerate(parts)]
    return shards


def planned_shards(folder: pathlib.Path, plan: dict[str, Any]) -> list[Shard]:
    """All shards of a plan, without their rows."""
    name, size = plan['dataset'].split('/')[0], plan['settings']['videos_per_shard']
    counts = {split: -(-rows // size) for split, rows in plan['rows'].items()}
    return [Shard(folder, name, split, n, count) for split, count in counts.items() for n in range(count)]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the report of a shard settles, by id: the videos, and the skips that depend on the file's content."""

    videos: dict[str, dict[str, Any]]
    skipped: dict[str, Skip]

    def has(self, row: Row) -> bool:
        """Return whether nothing is left to do for a row."""
        return row.video_id in self.videos or row.video_id in self.skipped


def read_kept(shard: Shard) -> Kept:
    """Return what need not be done again; without a report, nothing."""
    if not shard.is_done():
        return Kept({}, {})
    report = json.loads(shard.report.read_text())
    lasting = [Skip(**skip) for skip in report['skipped'] if skip['reason'] not in decoding.PASSING]
    return Kept({video['id']: video for video in report['videos']}, {skip.video_id: skip for skip in lasting})


def rows_left(shard: Shard) -> list[Row]:
    """Return the rows that a run has to do, or to try again."""
    kept = read_kept(shard)
    return [row for row in shard.rows if not kept.has(row)]


class ShardWriter:
    """Writes one shard under a temporary name; `commit` gives it its name and its report.

    Use as a context manager: left without `commit`, nothing of it remains.
    """

    def __init__(self, shard: Shard, plan_digest: str, features: tfds.features.FeaturesDict):
        self._shard, self._digest, self._features = shard, plan_digest, features
        self._serializer = tfds.core.example_serializer.ExampleSerializer(self._features.get_serialized_info())
        self._partial = shard.path.with_name(f'.{shard.path.name}.partial')
        self._records: list[dict[str, Any]] = []
        self._skipped: list[Skip] = []

    def __enter__(self) -> 'ShardWriter':
        # Neither H.264 nor latents get smaller by compression; one record a group is what random access wants.
        self._file = array_record_module.ArrayRecordWriter(str(self._partial), 'group_size:1,uncompressed')
        return self

    def add(self, example: dict[str, Any], told: dict[str, Any]) -> None:
        """Writes a record, of which the report tells id, num_frames, bytes and what else is in `told`."""
        # A protocol buffer's map has no order of its own: each process would write it in another one.
        message = self._serializer.get_tf_example(self._features.encode_example(example))
        self._file.write(message.SerializeToString(deterministic=True))
        self._records.append(told)

    def copy(self, record: bytes, told: dict[str, Any]) -> None:
        """Writes a serialized record of an earlier version of the shard."""
        self._file.write(record)
        self._records.append(told)

    def skip(self, skip: Skip) -> None:
        self._skipped.append(skip)

    def commit(self) -> None:
        """Raises OSError when what was written cannot be read back, as on a full disk."""
        self._file.close()
        if count_records(self._partial) != len(self._records):
            raise OSError(f'{self._shard.path} was not written whole; is there space on its disk?')
        report = {
            'plan': self._digest,
            'sha256': file_digest(self._partial),
            'videos': self._records,
            'skipped': [dataclasses.asdict(skip) for skip in self._skipped],
        }
        with open(self._partial, 'rb') as file:
            os.fsync(file.fileno())
        # A kill between these lines must not leave a report, or a summary, of other records.
        (self._shard.folder / prepared.SUMMARY).unlink(missing_ok=True)
        self._shard.report.unlink(missing_ok=True)
        os.replace(self._partial, self._shard.path)
        write_json(self._shard.report, report)

    def __exit__(self, *_: object) -> None:
        if self._file.is_open():
            self._file.close()
        self._partial.unlink(missing_ok=True)


def count_records(path: pathlib.Path) -> int:
    """Records of an ArrayRecord file; -1 = it cannot be read as one."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError):
        return -1
    return count


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """The serialized examples of an ArrayRecord file, in order."""
    reader = array_record_module.ArrayRecordReader(str(path))
    yield from (reader.read([number])[0] for number in range(reader.num_records()))
    reader.close()


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON under a temporary name, then renames."""
    write_text(path, json.dumps(content, indent=1) + '\n')


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a file whole or not at all: it is on the disk before it gets its name."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'w') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
