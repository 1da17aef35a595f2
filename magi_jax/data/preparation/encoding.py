"""Videos -> a dataset of latents (data/latents.py): plan, encode shard by shard, merge, check.

The tokenizer is a function here, whatever it runs on. It always gets batches of one size that hold rows of one shard
only, the last one filled up: so a shard is the same bytes wherever a run was stopped before it, on the same devices.

R rows (clips, or pieces of videos) of a batch, F frames of a row, H W pixels, T latent frames of a record, h w latent
rows and columns, c channels, K clips of a video.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import latents, prepared, sources, transforms
from magi_jax.data.latents import LatentSettings
from magi_jax.data.preparation import dataset, shards

# uint8 [R, F, H, W, 3] -> mean and log variance [R, t, h, w, c]; may return before they are computed.
Encode = Callable[[np.ndarray], tuple[Any, Any]]
QUEUE_SIZE = 2  # videos that are decoded ahead


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be encoded: the videos of both splits, and what is told of tokenizer and videos."""

    data: DataConfig  # names the videos
    settings: LatentSettings
    videos: dict[str, sources.Source]  # of each split of the latents
    plan: dict[str, Any]


@dataclasses.dataclass
class _Record:
    """A record in the making, and the rows that its latents come from."""

    video_id: str
    flip: latents.Flip
    start: int
    interval: int
    frames: int | None  # latent frames of the record; None = all that its rows have
    rows: list[np.ndarray]  # uint8 [F, H, W, 3]


def make_job(
    name: str,
    data_dir: str,
    data: DataConfig,
    settings: LatentSettings,
    tokenizer: dict[str, Any],
    replace: bool = False,
) -> Job:
    """Opens the videos and writes plan.json, or finds that the same one is there.

    Args:
      name: of the new dataset.
      data_dir: where datasets are kept.
      data: names the videos.
      settings: of the latents.
      tokenizer: what is told of it, with its 'fingerprint'.
      replace: deletes other latents of that name.

    Raises:
      ConfigError: the folder holds, or is to hold, other latents; or as `sources.open_source`.
    """
    splits = {latents.TRAIN: settings.train_split, latents.VALIDATION: sources.eval_split(data)}
    videos = {split: sources.open_source(data, named) for split, named in splits.items()}
    digest = hashlib.sha256(data.source.encode())
    for source in videos.values():
        digest.update(np.ascontiguousarray(source.lengths).tobytes())
    content = {
        'dataset': name,
        'settings': json.loads(json.dumps(dataclasses.asdict(settings))),
        'tokenizer': tokenizer,
        'videos': digest.hexdigest(),
        'rows': {split: len(source) for split, source in videos.items()},
    }
    plan = content | {'digest': hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    folder = prepared.dataset_folder(name, data_dir)
    there = dataset.read_plan(name, data_dir) if (folder / prepared.PLAN).is_file() else None
    if there and there['digest'] == plan['digest']:
        return Job(data, settings, videos, there)
    if there and not replace:
        raise ConfigError(
            f'{folder} was begun with {_difference(there, plan)}: add --replace to delete it and encode again, or '
            'choose another --dataset'
        )
    if there:
        dataset.discard(folder)
    (folder / 'reports').mkdir(parents=True, exist_ok=True)
    plan |= {'source': data.source, 'path': data.path}
    shards.write_json(folder / prepared.PLAN, plan)
    return Job(data, settings, videos, plan)


def video_numbers(job: Job, shard: shards.Shard) -> range:
    """Which videos of its split a shard holds."""
    size = job.settings.videos_per_shard
    return range(shard.number * size, min((shard.number + 1) * size, len(job.videos[shard.split])))


def encode_shard(job: Job, shard: shards.Shard, encode: Encode, rows: int, threads: int) -> Iterator[None]:
    """Encodes and writes one shard; yields after each of its videos.

    Args:
      job: what all is about.
      shard: of `shards.planned_shards`.
      encode: the tokenizer.
      rows: R, of every batch.
      threads: that decode videos.

    Raises:
      OSError: the shard cannot be written; it leaves nothing.
      FloatingPointError: latents are not finite.
    """
    settings, numbers = job.settings, video_numbers(job, shard)
    read = grain.MapDataset.range(numbers.start, numbers.stop).map(lambda n: _read(job, shard.split, int(n)))
    videos = iter(read.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=QUEUE_SIZE)))
    waiting: collections.deque[_Record] = collections.deque()

    def all_rows() -> Iterator[np.ndarray]:
        for record in itertools.chain.from_iterable(videos):
            waiting.append(record)
            yield from record.rows

    written, per_video = 0, settings.records_per_video(shard.split)
    file = shards.ShardWriter(shard, job.plan['digest'], latents.make_features(settings))
    with contextlib.closing(videos), file as writer:
        parts: list[tuple[np.ndarray, ...]] = []
        for moments in _encode_rows(all_rows(), encode, rows):
            parts.append(moments)
            if len(parts) == len(waiting[0].rows):
                writer.add(*_example(waiting.popleft(), parts, settings))
                parts, written = [], written + 1
                if written % per_video == 0:
                    yield
        writer.commit()


def merge(name: str, data_dir: str) -> dict[str, Any]:
    """Makes a dataset of finished shards; done again, it gives the same files. Returns preparation.json.

    Raises:
      ConfigError: a shard is not there or belongs to another plan.
    """
    plan, folder = dataset.read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    (folder / prepared.SUMMARY).unlink(missing_ok=True)
    settings = _settings(plan)
    done = [(shard, dataset.read_report(shard, plan)) for shard in shards.planned_shards(folder, plan)]
    records = dict.fromkeys(plan['rows'], 0)
    for shard, report in done:
        records[shard.split] += len(report['videos'])
    for split, rows in plan['rows'].items():
        if records[split] != rows * settings.records_per_video(split):
            raise ConfigError(f'{folder} has {records[split]} latents of {rows} {split} videos: delete its reports/')
    dataset.write_metadata(folder, plan, done, latents.make_features(settings))
    size = sum(record['bytes'] for _, report in done for record in report['videos'])
    told = {'fingerprint': plan['tokenizer']['fingerprint'], 'source': plan['source'], 'path': plan['path']}
    summary = {'plan': plan['digest'], 'records': records, 'megabytes': round(size / 1e6, 3)}
    summary |= {prepared.LATENTS: {'settings': plan['settings'], **told}}
    shards.write_json(folder / prepared.SUMMARY, summary)
    return summary


def check_latents(told: list[dict[str, Any]], records: Iterator[bytes], plan: dict[str, Any]) -> list[str]:
    """What is wrong with the records of a shard: each is to be the latents that its report tells, all finite."""
    settings = _settings(plan)
    features, found = latents.make_features(settings), []
    for each, record in zip(told, records, strict=True):
        example = features.deserialize_example_np(record)
        flip = bool(example['flip_horizontal']), bool(example['flip_vertical'])
        place = _name(os.fsdecode(example['video_id']), flip, int(example['start']), int(example['interval']))
        if place != each['id'] or any(len(example[name]) != each['num_frames'] for name in settings.names):
            found.append(f'{each["id"]} is not the clip that the report tells')
        elif not all(np.isfinite(example[name]).all() for name in settings.names):
            found.append(f'{each["id"]} is not finite')
    return found


def _read(job: Job, split: str, number: int) -> list[_Record]:
    """One video as the rows of all its records."""
    settings, video = job.settings, job.videos[split][number]
    piece = settings.frames
    if split == latents.VALIDATION:
        pixels = video.read(range(piece))
        return [_Record(video.video_id, (False, False), 0, 1, None, [pixels])]
    if settings.clips:
        cuts = [draw_stored(settings, number, k, video.num_frames) for k in range(settings.clips)]
        wanted = sorted({int(i) for indices, _ in cuts for i in indices})
        pixels, places = video.read(wanted), {frame: place for place, frame in enumerate(wanted)}
        clips = [(pixels[[places[int(i)] for i in indices]], int(indices[0]), interval) for indices, interval in cuts]
        return [
            _Record(video.video_id, flip, start, interval, None, [transforms.flip(clip, *flip)])
            for flip in settings.flips
            for clip, start, interval in clips
        ]
    whole = video.read(range(video.num_frames))
    filled = np.pad(whole, [(0, -len(whole) % piece), (0, 0), (0, 0), (0, 0)], mode='edge')
    pieces = [filled[first : first + piece] for first in range(0, len(filled), piece)]
    return [
        _Record(video.video_id, flip, 0, 1, len(whole), [transforms.flip(part, *flip) for part in pieces])
        for flip in settings.flips
    ]


def draw_stored(settings: LatentSettings, number: int, k: int, num_frames: int) -> tuple[np.ndarray, int]:
    """Which frames clip k of training video `number` has, and their interval: a function of `settings.seed`."""
    rng = np.random.default_rng([settings.seed, number, k])
    return transforms.draw_clip(rng, num_frames, settings.frames, settings.max_interval)


def _encode_rows(rows: Iterator[np.ndarray], encode: Encode, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """(mean, log variance) [t, h, w, c] of each row; the next batch is handed over before this one is waited for."""
    pending: tuple[Any, int] | None = None
    while batch := list(itertools.islice(rows, size)):
        made = encode(np.stack(batch + [batch[-1]] * (size - len(batch)))), len(batch)
        if pending is not None:
            yield from _each(*pending)
        pending = made
    if pending is not None:
        yield from _each(*pending)


def _each(moments: tuple[Any, Any], count: int) -> Iterator[tuple[np.ndarray, ...]]:
    arrays = [np.asarray(array) for array in moments]
    yield from (tuple(array[row] for array in arrays) for row in range(count))


def _example(
    record: _Record, parts: list[tuple[np.ndarray, ...]], settings: LatentSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record as an example of the dataset, and what the report tells of it."""
    moments = {
        name: np.concatenate(pieces)[: record.frames].astype(settings.dtype)
        for name, pieces in zip(settings.names, zip(*parts))
    }
    name = _name(record.video_id, record.flip, record.start, record.interval)
    if not all(np.isfinite(array).all() for array in moments.values()):
        raise FloatingPointError(f'latents of {name} are not finite, or too large for {settings.dtype}')
    place = {'start': record.start, 'interval': record.interval}
    place |= {'flip_horizontal': record.flip[0], 'flip_vertical': record.flip[1]}
    size = sum(array.nbytes for array in moments.values())
    told = {'id': name, 'num_frames': len(moments['mean']), 'bytes': size}
    return {'video_id': os.fsencode(record.video_id), **place, **moments}, told


def _name(video_id: str, flip: latents.Flip, start: int, interval: int) -> str:
    return f'{video_id} from {start} by {interval}{" mirrored" * flip[0]}{" upside down" * flip[1]}'


def _settings(plan: dict[str, Any]) -> LatentSettings:
    return LatentSettings(**plan['settings'] | {'latent_shape': tuple(plan['settings']['latent_shape'])})


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for key, value in old['settings'].items():
        if value != new['settings'][key]:
            return f'{key} = {value}, not {new["settings"][key]}'
    if old['tokenizer']['fingerprint'] != new['tokenizer']['fingerprint']:
        return 'another tokenizer or other latent statistics'
    return f'other videos ({sum(old["rows"].values())} then, {sum(new["rows"].values())} now)'
