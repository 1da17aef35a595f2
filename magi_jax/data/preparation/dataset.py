"""Turns a listing into a finished dataset: plan, prepare shard by shard, merge, check."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError
from magi_jax.data import prepared, stored_video, video_file
from magi_jax.data.preparation import plans, rows, shards, workers
from magi_jax.data.preparation.listing import Listing, Skip
from magi_jax.data.preparation.reencode import Prepared, Settings

ShardReport = tuple[shards.Shard, dict[str, Any]]
CheckRecords = Callable[[list[dict[str, Any]], Iterator[bytes], dict[str, Any]], list[str]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Fractions of all rows that may be lost. A dataset that loses more is not published."""

    skipped: float = 0.05  # for any reason except `missing`
    missing: float = 0.05


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of all rows: rows = prepared + skipped."""

    rows: int
    prepared: dict[str, int]  # videos per split
    skipped: dict[str, int]  # rows per reason
    frames: int
    megabytes: float
    over_limit: str  # reason why the dataset is not published; '' = published


def make_plan(
    name: str, data_dir: str, listing: Listing, settings: Settings, replace: bool = False
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Write plan.json, unless the same plan exists. `replace` deletes a dataset that was prepared by another plan.

    Returns:
      The dataset's folder and the plan.

    Raises:
      ConfigError: the folder holds the same dataset from other files or with other settings.
    """
    folder = prepared.dataset_folder(name, data_dir)
    content = {
        'dataset': name,
        'settings': dataclasses.asdict(settings),
        'encoder': stored_video.describe_encoder(settings.codec),
        'rows': dict(collections.Counter(row.split for row in listing.rows)),
        'labels': list(listing.labels),
        'skipped': [dataclasses.asdict(skip) for skip in listing.skipped],
        'ignored': list(listing.ignored),
    }
    tuples = [row.as_tuple() for row in listing.rows]
    plan = content | {'digest': hashlib.sha256(json.dumps([content, tuples]).encode()).hexdigest()}
    advice = 'prepare again, or choose another --dataset or --data_dir'
    return folder, plans.begin(folder, plan, replace, functools.partial(_difference, plan), advice)


def prepare(
    todo: list[shards.Shard], plan: dict[str, Any], root: str, processes: int, timeout: float
) -> Iterator[Skip | None]:
    """Prepare the remaining rows of the shards. Yield the outcome of each row: its Skip, or None for a prepared video.

    Args:
      todo: shards with remaining rows.
      plan: plan of their dataset.
      root: folder that the paths of the rows are relative to.
      processes: number of processes that decode and encode.
      timeout: seconds for one video.

    Raises:
      OSError: a shard cannot be written. Nothing of it remains; the shards before it are complete.
    """
    settings = Settings(**plan['settings'])
    remaining = {shard.path: shards.remaining_rows(shard) for shard in todo}
    tasks = ((root, row, settings) for shard in todo for row in remaining[shard.path])
    with contextlib.closing(workers.run_ordered(rows.prepare_row, tasks, processes, timeout)) as results:
        for shard in todo:
            shard_results: Iterator[Any] = results
            if shard.is_done():  # retried rows only: most fail again, and then nothing is written
                retried_rows = remaining[shard.path]
                retried = [next(results) for _ in retried_rows]
                if not any(isinstance(result, Prepared) for result in retried):
                    yield from (rows.make_skip(row, result, timeout) for row, result in zip(retried_rows, retried))
                    continue
                shard_results = iter(retried)
            with shards.ShardWriter(shard, plan['digest'], prepared.make_features(plan['labels'])) as writer:
                yield from _write_shard(shard, writer, shard_results, plan['labels'], timeout)
                writer.commit()


def _write_shard(
    shard: shards.Shard, writer: shards.ShardWriter, results: Iterator[Any], labels: list[str], timeout: float
) -> Iterator[Skip | None]:
    """Write all rows of a shard: copy rows of an earlier version, and take the other rows from `results`."""
    finished = shards.read_finished_rows(shard)
    records = shards.read_records(shard.path) if finished.videos else iter(())
    for row in shard.rows:
        if row.video_id in finished.videos:
            writer.copy(next(records), finished.videos[row.video_id])
            continue
        if row.video_id in finished.skipped:
            writer.skip(finished.skipped[row.video_id])
            continue
        result = next(results)
        if isinstance(result, Prepared):
            writer.add(*rows.make_record(row, result, labels))
            yield None
        else:
            skip = rows.make_skip(row, result, timeout)
            writer.skip(skip)
            yield skip


def merge(name: str, data_dir: str, limits: Limits) -> Summary:
    """Make a dataset from finished shards, from any number of processes. Repeated calls give the same files.

    Raises:
      ConfigError: a shard is missing or belongs to another plan, two videos have one id, or the counts do not match.
    """
    plan, folder = plans.read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    (folder / prepared.SUMMARY).unlink(missing_ok=True)
    all_shards = shards.planned_shards(folder, plan)
    reports = [read_report(shard, plan) for shard in all_shards]
    skipped = [*plan['skipped'], *(skip for report in reports for skip in report['skipped'])]
    summary = _summarize(plan, list(zip(all_shards, reports)), skipped, limits)
    shards.write_text(folder / prepared.SKIPPED, ''.join(json.dumps(skip) + '\n' for skip in skipped))
    if summary.over_limit:
        return summary
    write_metadata(folder, plan, list(zip(all_shards, reports)), prepared.make_features(plan['labels']))
    counts = dataclasses.asdict(summary) | {'plan': plan['digest'], 'settings': plan['settings']}
    shards.write_json(folder / prepared.SUMMARY, counts)
    return summary


def check_videos(entries: list[dict[str, Any]], records: Iterator[bytes], plan: dict[str, Any]) -> list[str]:
    """Check that each record of a shard is the video named in the report. Return one line per problem.

    The last frame must decode, which needs all of its packets in place.
    """
    settings, features, problems = Settings(**plan['settings']), prepared.make_features(plan['labels']), []
    for entry, record in zip(entries, records, strict=True):
        example = features.deserialize_example_np(record)
        video = prepared.stored_video(example, settings.keyframe_interval)
        if os.fsdecode(example['video_id']) != entry['id'] or len(video) != entry['num_frames']:
            problems.append(f'{entry["id"]} is not the video named in the report')
        elif len(video.stream) != video.sizes.sum():
            problems.append(f'{entry["id"]} has {len(video.stream)} bytes, but its packets have {video.sizes.sum()}')
        else:
            try:
                stored_video.read(video, [len(video) - 1], settings.height, settings.width)
            except video_file.VideoError as error:
                problems.append(f'{entry["id"]}: {error}')
    return problems


def check(name: str, data_dir: str, processes: int, check_records: CheckRecords = check_videos) -> Iterator[list[str]]:
    """Check a finished dataset. Yield the problems of each shard in turn.

    The checksum of a shard must match its report, and `check_records(entries, records, plan)` must find no problem.

    Raises:
      ConfigError: the dataset is not finished, or its counts do not match.
    """
    plan, folder = plans.read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    if prepared.read_summary(name, data_dir)['plan'] != plan['digest']:
        raise ConfigError(f'{folder / prepared.SUMMARY} belongs to another plan: run launch.prepare_data again')
    all_shards = shards.planned_shards(folder, plan)
    reports = [read_report(shard, plan) for shard in all_shards]
    info = tfds.builder_from_directory(folder).info
    for split in plan['rows']:
        counts = [len(report['videos']) for shard, report in zip(all_shards, reports) if shard.split == split]
        if list(info.splits[split].shard_lengths) != counts:
            raise ConfigError(f'{folder}: the record counts of split {split} differ from its reports: merge again')
    tasks = ((shard, report, plan, check_records) for shard, report in zip(all_shards, reports))
    for shard, result in zip(all_shards, workers.run_ordered(check_shard, tasks, processes, timeout=86400.0)):
        failed = isinstance(result, workers.WorkerFailure)
        yield [f'{shard.path.name}: {result.cause}'] if failed else [f'{shard.path.name}: {line}' for line in result]


def check_shard(task: tuple[shards.Shard, dict[str, Any], dict[str, Any], CheckRecords]) -> list[str]:
    """Check one shard. Return one line per problem.

    `task` is (shard, its report, the plan, function that checks the records).
    """
    shard, report, plan, check_records = task
    if not shard.path.is_file():
        return ['the file is missing']
    if shards.file_digest(shard.path) != report['sha256']:
        return ['the checksum does not match the report']
    return check_records(report['videos'], shards.read_records(shard.path), plan)


def join(
    folder: pathlib.Path, plan: dict[str, Any], expected: dict[str, int], features: tfds.features.FeaturesDict
) -> list[ShardReport]:
    """Write the metadata of a dataset whose shards are all finished. Return the shards with their reports.

    `expected` is the number of records of each split.

    Raises:
      ConfigError: a shard is missing or belongs to another plan, or a split has another number of records.
    """
    (folder / prepared.SUMMARY).unlink(missing_ok=True)
    done = [(shard, read_report(shard, plan)) for shard in shards.planned_shards(folder, plan)]
    for split, count in expected.items():
        found = sum(len(report['videos']) for shard, report in done if shard.split == split)
        if found != count:
            raise ConfigError(f'{folder} has {found} of {count} records of split {split}: delete its reports/')
    write_metadata(folder, plan, done, features)
    return done


def write_metadata(
    folder: pathlib.Path, plan: dict[str, Any], done: list[ShardReport], features: tfds.features.FeaturesDict
) -> None:
    """Write the metadata of TFDS and the lengths of the records, from finished shards and their reports."""
    lengths = {
        shard.path.name: np.asarray([video['num_frames'] for video in report['videos']], np.int32)
        for shard, report in done
    }
    np.savez(folder / prepared.LENGTHS, **lengths)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=done[0][0].name, filetype_suffix='array_record'
    )
    splits = []
    for split in plan['rows']:
        videos = [report['videos'] for shard, report in done if shard.split == split]
        size = sum(video['bytes'] for part in videos for video in part)
        shard_lengths, split_template = list(map(len, videos)), template.replace(split=split)
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=shard_lengths, num_bytes=size, filename_template=split_template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        filename_template=template,
        version=prepared.VERSION,
        check_data=False,
        description=f'{plan["dataset"]}, made by magi_jax: {json.dumps(plan["settings"])}',
    )


def read_report(shard: shards.Shard, plan: dict[str, Any]) -> dict[str, Any]:
    """Read the report of a finished shard.

    Raises:
      ConfigError: the shard is not finished, or belongs to another plan.
    """
    if not shard.is_done() or not shard.path.is_file():
        raise ConfigError(f'{shard.path} is not finished: prepare it, or copy the shards of all hosts to one folder')
    report = json.loads(shard.report.read_text())
    if report['plan'] != plan['digest']:
        raise ConfigError(
            f'{shard.path} was made from other files or settings than {prepared.PLAN} says: delete {shard.report} and '
            'run its command again'
        )
    return report


def _summarize(
    plan: dict[str, Any],
    done: list[ShardReport],
    skipped: list[dict[str, str]],
    limits: Limits,
) -> Summary:
    videos = [video for _, report in done for video in report['videos']]
    counts = dict.fromkeys(plan['rows'], 0)
    for shard, report in done:
        counts[shard.split] += len(report['videos'])
    rows = sum(plan['rows'].values()) + len(plan['skipped'])
    retry = 'delete the folder reports/ of the dataset and prepare it again'
    if rows != len(videos) + len(skipped):
        raise ConfigError(f'{rows} rows are not {len(videos)} prepared and {len(skipped)} skipped videos: {retry}')
    if len({video['id'] for video in videos}) != len(videos):
        raise ConfigError(f'two prepared videos have the same id: {retry}')
    reasons = dict(sorted(collections.Counter(skip['reason'] for skip in skipped).items()))
    missing = reasons.get('missing', 0)
    over_limit = ''
    for count, limit, what in (
        (len(skipped) - missing, limits.skipped, 'skipped'),
        (missing, limits.missing, 'missing'),
    ):
        if count > limit * rows:
            over_limit = f'{count} of {rows} videos are {what}, more than max_{what} = {limit:g} of them'
    if not videos:
        over_limit = f'none of {rows} videos can be used'
    frames, size = (sum(video[key] for video in videos) for key in ('num_frames', 'bytes'))
    return Summary(rows, counts, reasons, frames, round(size / 1e6, 3), over_limit)


def _difference(new: dict[str, Any], old: dict[str, Any]) -> str:
    for key, value in old['settings'].items():
        if value != new['settings'][key]:
            return f'{key} = {value}, not {new["settings"][key]}'
    if old['encoder'] != new['encoder']:
        return f'encoder {old["encoder"]}, not {new["encoder"]}'
    count = {which: sum(plan['rows'].values()) + len(plan['skipped']) for which, plan in (('old', old), ('new', new))}
    return f'other source files or annotations ({count["old"]} videos then, {count["new"]} now)'
