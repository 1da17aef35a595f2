"""From a listing to a finished dataset: plan, prepare shard by shard, merge, check."""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError
from magi_jax.data import prepared, stored_video, video_file
from magi_jax.data.preparation import rows, shards, workers
from magi_jax.data.preparation.listing import Listing, Skip
from magi_jax.data.preparation.reencode import Prepared, Settings

ShardReport = tuple[shards.Shard, dict[str, Any]]
CheckRecords = Callable[[list[dict[str, Any]], Iterator[bytes], dict[str, Any]], list[str]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may be lost before a dataset is not published, as parts of all rows."""

    skipped: float = 0.05  # for any reason but `missing`
    missing: float = 0.05


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of all rows: rows = prepared + skipped."""

    rows: int
    prepared: dict[str, int]  # of each split
    skipped: dict[str, int]  # of each reason
    frames: int
    megabytes: float
    over_limit: str  # why the dataset is not published; '' = it is


def make_plan(
    name: str, data_dir: str, listing: Listing, settings: Settings, replace: bool = False
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Writes plan.json, or finds that the same one is there. `replace` deletes what was prepared by another plan.

    Returns:
      The dataset's folder and the plan.

    Raises:
      ConfigError: the folder holds, or is to hold, the same dataset from other files or with other settings.
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
    there = read_plan(name, data_dir) if (folder / prepared.PLAN).is_file() else None
    if there and there['digest'] == plan['digest']:
        return folder, there
    if there and not replace:
        raise ConfigError(
            f'{folder} was begun with {_difference(there, plan)}: add --replace to delete it and prepare again, or '
            'choose another --dataset or --data_dir'
        )
    if there:
        discard(folder)
    (folder / 'reports').mkdir(parents=True, exist_ok=True)
    shards.write_json(folder / prepared.PLAN, plan)
    return folder, plan


def discard(folder: pathlib.Path) -> None:
    """Deletes a dataset, unless another process is making it. Raises as `alone`."""
    with exclusive_lock(folder, (0, 1)):
        shutil.rmtree(folder)


def read_plan(name: str, data_dir: str) -> dict[str, Any]:
    """plan.json of a dataset.

    Raises:
      ConfigError: nobody has begun to prepare it.
    """
    path = prepared.dataset_folder(name, data_dir) / prepared.PLAN
    if not path.is_file():
        raise ConfigError(f'{path.parent} is no prepared dataset: it has no {prepared.PLAN}')
    return json.loads(path.read_text())


def prepare(
    todo: list[shards.Shard], plan: dict[str, Any], root: str, processes: int, timeout: float
) -> Iterator[Skip | None]:
    """Prepares what is left of shards, and tells for each such row when it is done: what is wrong with it, or None.

    Args:
      todo: shards with `shards.rows_left`.
      plan: of the dataset they belong to.
      root: folder that the paths of the rows are relative to.
      processes: how many decode and encode.
      timeout: seconds for one video.

    Raises:
      OSError: a shard cannot be written. It leaves nothing; those before it are whole.
    """
    settings = Settings(**plan['settings'])
    left = {shard.path: shards.rows_left(shard) for shard in todo}
    tasks = ((root, row, settings) for shard in todo for row in left[shard.path])
    with contextlib.closing(workers.run_ordered(rows.prepare_row, tasks, processes, timeout)) as results:
        for shard in todo:
            done: Iterator[Any] = results
            if shard.is_done():  # only rows that are tried again: most often they fail again, and nothing is written
                again = [next(results) for _ in left[shard.path]]
                if not any(isinstance(result, Prepared) for result in again):
                    yield from (rows.make_skip(row, result, timeout) for row, result in zip(left[shard.path], again))
                    continue
                done = iter(again)
            with shards.ShardWriter(shard, plan['digest'], prepared.make_features(plan['labels'])) as writer:
                yield from _write_shard(shard, writer, done, plan['labels'], timeout)
                writer.commit()


def _write_shard(
    shard: shards.Shard, writer: shards.ShardWriter, results: Iterator[Any], labels: list[str], timeout: float
) -> Iterator[Skip | None]:
    """Writes all rows of a shard: those of its earlier version as they are, the rest from `results`."""
    kept = shards.read_kept(shard)
    records = shards.read_records(shard.path) if kept.videos else iter(())
    for row in shard.rows:
        if row.video_id in kept.videos:
            writer.copy(next(records), kept.videos[row.video_id])
            continue
        if row.video_id in kept.skipped:
            writer.skip(kept.skipped[row.video_id])
            continue
        result = next(results)
        if isinstance(result, Prepared):
            writer.add(*rows.make_record(row, result, labels))
            yield None
        else:
            skip = rows.make_skip(row, result, timeout)
            writer.skip(skip)
            yield skip


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path, part: tuple[int, int]) -> Iterator[None]:
    """Keeps a second process from preparing the same part of the same dataset; the system frees it after a kill.

    Raises:
      ConfigError: another process is at it.
    """
    with open(folder / 'reports' / f'.part-{part[0]}-of-{part[1]}.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f'another process is preparing {folder}') from error
        yield


def merge(name: str, data_dir: str, limits: Limits) -> Summary:
    """Makes a dataset of finished shards, whoever wrote them; done again, it gives the same files.

    Raises:
      ConfigError: a shard is not there or belongs to another plan, two videos have one id, or the counts do not agree.
    """
    plan, folder = read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
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


def check_videos(told: list[dict[str, Any]], records: Iterator[bytes], plan: dict[str, Any]) -> list[str]:
    """What is wrong with the records of a shard: each is to be the video that its report tells.

    Its last frame, for which all of its packets must be in place, must decode.
    """
    settings, features, found = Settings(**plan['settings']), prepared.make_features(plan['labels']), []
    for each, record in zip(told, records, strict=True):
        example = features.deserialize_example_np(record)
        video = prepared.stored_video(example, settings.keyframe_interval)
        if os.fsdecode(example['video_id']) != each['id'] or len(video) != each['num_frames']:
            found.append(f'{each["id"]} is not the video that the report tells')
        elif len(video.stream) != video.sizes.sum():
            found.append(f'{each["id"]} has {len(video.stream)} bytes, not {video.sizes.sum()}')
        else:
            try:
                stored_video.read(video, [len(video) - 1], settings.height, settings.width)
            except video_file.VideoError as error:
                found.append(f'{each["id"]}: {error}')
    return found


def check(name: str, data_dir: str, processes: int, check_records: CheckRecords = check_videos) -> Iterator[list[str]]:
    """Reads a finished dataset again: what is wrong with each of its shards, in turn.

    A shard's bytes must be those its report tells, and `check_records(told, records, plan)` must find nothing.

    Raises:
      ConfigError: the dataset is not whole, or its counts do not agree.
    """
    plan, folder = read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    if prepared.read_summary(name, data_dir)['plan'] != plan['digest']:
        raise ConfigError(f'{folder / prepared.SUMMARY} belongs to another plan; run launch.prepare_data again')
    all_shards = shards.planned_shards(folder, plan)
    reports = [read_report(shard, plan) for shard in all_shards]
    info = tfds.builder_from_directory(folder).info
    for split in plan['rows']:
        told = [len(report['videos']) for shard, report in zip(all_shards, reports) if shard.split == split]
        if list(info.splits[split].shard_lengths) != told:
            raise ConfigError(f'{folder}: the metadata of split {split} do not count what its reports do')
    tasks = ((shard, report, plan, check_records) for shard, report in zip(all_shards, reports))
    for shard, result in zip(all_shards, workers.run_ordered(check_shard, tasks, processes, timeout=86400.0)):
        died = isinstance(result, workers.WorkerFailure)
        yield [f'{shard.path.name}: {result.cause}'] if died else [f'{shard.path.name}: {line}' for line in result]


def check_shard(task: tuple[shards.Shard, dict[str, Any], dict[str, Any], CheckRecords]) -> list[str]:
    """(shard, its report, the plan, what checks the records) -> what is wrong with the shard."""
    shard, report, plan, check_records = task
    if not shard.path.is_file():
        return ['there is no such file']
    if shards.file_digest(shard.path) != report['sha256']:
        return ['its bytes are not those that were written']
    return check_records(report['videos'], shards.read_records(shard.path), plan)


def write_metadata(
    folder: pathlib.Path, plan: dict[str, Any], done: list[ShardReport], features: tfds.features.FeaturesDict
) -> None:
    """Writes what TFDS reads, and the lengths of the records, of shards that are whole, with their reports."""
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
        own = template.replace(split=split)
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=list(map(len, videos)), num_bytes=size, filename_template=own)
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
    """The report of a shard that is whole.

    Raises:
      ConfigError: it is not there, or belongs to another plan.
    """
    if not shard.is_done() or not shard.path.is_file():
        raise ConfigError(f'{shard.path} is not there yet; make it, or copy the shards of all hosts to one folder')
    report = json.loads(shard.report.read_text())
    if report['plan'] != plan['digest']:
        raise ConfigError(f'{shard.path} was made from other files or settings than {prepared.PLAN} tells')
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
    if rows != len(videos) + len(skipped):
        raise ConfigError(f'{rows} rows are not {len(videos)} prepared and {len(skipped)} skipped videos')
    if len({video['id'] for video in videos}) != len(videos):
        raise ConfigError('two prepared videos have the same id')
    reasons = dict(sorted(collections.Counter(skip['reason'] for skip in skipped).items()))
    missing = reasons.get('missing', 0)
    over = ''
    for part, limit, what in (
        (len(skipped) - missing, limits.skipped, 'skipped'),
        (missing, limits.missing, 'missing'),
    ):
        if part > limit * rows:
            over = f'{part} of {rows} videos are {what}, more than max_{what} = {limit:g} of them'
    if not videos:
        over = f'none of {rows} videos can be used'
    frames, size = (sum(video[key] for video in videos) for key in ('num_frames', 'bytes'))
    return Summary(rows, counts, reasons, frames, round(size / 1e6, 3), over)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for key, value in old['settings'].items():
        if value != new['settings'][key]:
            return f'{key} = {value}, not {new["settings"][key]}'
    if old['encoder'] != new['encoder']:
        return f'encoder {old["encoder"]}, not {new["encoder"]}'
    count = {which: sum(plan['rows'].values()) + len(plan['skipped']) for which, plan in (('old', old), ('new', new))}
    return f'other source files or annotations ({count["old"]} videos then, {count["new"]} now)'
