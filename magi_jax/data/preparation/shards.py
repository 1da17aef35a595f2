"""Shards of a dataset in preparation: the rows of each shard, atomic writing, and a report for each shard.

The report of a shard appears after the shard. Rows in a report are not prepared again, so a killed run continues from
there. The result does not depend on which process prepared what, so a resumed run ends with the same bytes. Only rows
skipped for one of `decoding.TRANSIENT_REASONS` are tried again by every run.
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
    name: str  # name of the dataset, without its variant
    split: str
    number: int
    count: int  # number of shards of the split
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
    """Divide the rows of a listing into shards. The result depends on the listing and settings only."""
    by_split: dict[str, list[Row]] = {}
    for row in listing.rows:
        by_split.setdefault(row.split, []).append(row)
    shards, size = [], settings.videos_per_shard
    for split, rows in by_split.items():
        parts = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
        shards += [Shard(folder, name.split('/')[0], split, n, len(parts), part) for n, part in enumerate(parts)]
    return shards


def planned_shards(folder: pathlib.Path, plan: dict[str, Any]) -> list[Shard]:
    """Return all shards of a plan, without their rows."""
    name, size = plan['dataset'].split('/')[0], plan['settings']['videos_per_shard']
    counts = {split: -(-rows // size) for split, rows in plan['rows'].items()}
    return [Shard(folder, name, split, n, count) for split, count in counts.items() for n in range(count)]


@dataclasses.dataclass(frozen=True)
class FinishedRows:
    """Rows of a shard that need no more work, by id: the videos, and the skips that depend on the file content."""

    videos: dict[str, dict[str, Any]]
    skipped: dict[str, Skip]

    def has(self, row: Row) -> bool:
        """Return True if a row is finished."""
        return row.video_id in self.videos or row.video_id in self.skipped


def read_finished_rows(shard: Shard) -> FinishedRows:
    """Read the finished rows of a shard from its report. Without a report, none is finished."""
    if not shard.is_done():
        return FinishedRows({}, {})
    report = json.loads(shard.report.read_text())
    videos = {video['id']: video for video in report['videos']}
    skips = [Skip(**skip) for skip in report['skipped'] if skip['reason'] not in decoding.TRANSIENT_REASONS]
    return FinishedRows(videos, {skip.video_id: skip for skip in skips})


def remaining_rows(shard: Shard) -> list[Row]:
    """Return the rows that a run has to prepare or retry."""
    finished = read_finished_rows(shard)
    return [row for row in shard.rows if not finished.has(row)]


class ShardWriter:
    """Writes one shard under a temporary name. `commit` renames it and writes its report.

    Use it as a context manager. Without `commit`, nothing remains on exit.
    """

    def __init__(self, shard: Shard, plan_digest: str, features: tfds.features.FeaturesDict):
        self._shard, self._digest, self._features = shard, plan_digest, features
        self._serializer = tfds.core.example_serializer.ExampleSerializer(self._features.get_serialized_info())
        self._partial = shard.path.with_name(f'.{shard.path.name}.partial')
        self._records: list[dict[str, Any]] = []
        self._skipped: list[Skip] = []

    def __enter__(self) -> 'ShardWriter':
        # Uncompressed, because neither H.264 nor latents compress further. One record per group, for random access.
        self._file = array_record_module.ArrayRecordWriter(str(self._partial), 'group_size:1,uncompressed')
        return self

    def add(self, example: dict[str, Any], entry: dict[str, Any]) -> None:
        """Write a record. `entry` describes it in the report: id, num_frames, bytes and further values."""
        # Deterministic, because each process would otherwise write the map of a protocol buffer in another order.
        message = self._serializer.get_tf_example(self._features.encode_example(example))
        self._file.write(message.SerializeToString(deterministic=True))
        self._records.append(entry)

    def copy(self, record: bytes, entry: dict[str, Any]) -> None:
        """Write a serialized record of an earlier version of the shard."""
        self._file.write(record)
        self._records.append(entry)

    def skip(self, skip: Skip) -> None:
        self._skipped.append(skip)

    def commit(self) -> None:
        """Publish the shard and its report. Raise OSError if the records cannot be read back, as on a full disk."""
        self._file.close()
        if count_records(self._partial) != len(self._records):
            raise OSError(f'{self._shard.path} was not written completely: free space on its disk')
        report = {
            'plan': self._digest,
            'sha256': file_digest(self._partial),
            'videos': self._records,
            'skipped': [dataclasses.asdict(skip) for skip in self._skipped],
        }
        with open(self._partial, 'rb') as file:
            os.fsync(file.fileno())
        # In this order, a kill between two lines leaves no report or summary of other records.
        (self._shard.folder / prepared.SUMMARY).unlink(missing_ok=True)
        self._shard.report.unlink(missing_ok=True)
        os.replace(self._partial, self._shard.path)
        write_json(self._shard.report, report)

    def __exit__(self, *_: object) -> None:
        if self._file.is_open():
            self._file.close()
        self._partial.unlink(missing_ok=True)


def count_records(path: pathlib.Path) -> int:
    """Count the records of an ArrayRecord file. Return -1 if it cannot be read."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError):
        return -1
    return count


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the serialized examples of an ArrayRecord file, in order."""
    reader = array_record_module.ArrayRecordReader(str(path))
    yield from (reader.read([number])[0] for number in range(reader.num_records()))
    reader.close()


def file_digest(path: pathlib.Path) -> str:
    """Compute the SHA-256 of a file's content, in hex."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write indented JSON atomically, see `write_text`."""
    write_text(path, json.dumps(content, indent=1) + '\n')


def write_text(path: pathlib.Path, content: str) -> None:
    """Write a file atomically: write and sync a temporary file, then rename it."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'w') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
