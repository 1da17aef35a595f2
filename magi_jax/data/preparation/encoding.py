"""Encodes videos to a dataset of latents (data/latents.py): plan, encode shard by shard, merge, check.

The tokenizer is a function here and may run on any device. All its batches have the same size and hold rows of one
shard only; the last batch is padded. A resumed run on the same devices therefore writes the same bytes.

Dimension key: R rows (clips or pieces of videos) of a batch, F frames of a row, H W pixels. T latent frames of a
record, h w latent rows and columns, c channels, K clips of a video.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from magi_jax.config import DataConfig
from magi_jax.data import latents, prepared, sources, transforms
from magi_jax.data.latents import LatentSettings
from magi_jax.data.preparation import dataset, plans, shards

# uint8 [R, F, H, W, 3] -> mean and log variance [R, t, h, w, c]; may return before they are computed.
Encode = Callable[[np.ndarray], tuple[Any, Any]]
QUEUE_SIZE = 2  # number of prefetched videos


@dataclasses.dataclass(frozen=True)
class Job:
    """An encoding task: the videos of both splits, the settings and the plan."""

    data: DataConfig  # config of the videos
    settings: LatentSettings
    videos: dict[str, sources.Source]  # by split of the latents
    plan: dict[str, Any]


@dataclasses.dataclass
class _Record:
    """A record before encoding, with the rows that its latents are computed from."""

    video_id: str
    flip: latents.Flip
    start: int
    interval: int
    frames: int | None  # latent frames of the record; None = all frames of its rows
    rows: list[np.ndarray]  # uint8 [F, H, W, 3]


def make_job(
    name: str,
    data_dir: str,
    data: DataConfig,
    settings: LatentSettings,
    tokenizer: dict[str, Any],
    replace: bool = False,
) -> Job:
    """Open the videos and write plan.json, unless the same plan exists.

    Args:
      name: name of the new dataset.
      data_dir: folder of datasets.
      data: config of the videos.
      settings: settings of the latents.
      tokenizer: metadata of the tokenizer, with its 'fingerprint'.
      replace: True deletes other latents of that name.

    Raises:
      ConfigError: the folder holds other latents, or an error of `sources.open_source`.
    """
    splits = {latents.TRAIN: settings.train_split, latents.VALIDATION: sources.eval_split(data)}
    videos = {split: sources.open_source(data, name_in_source) for split, name_in_source in splits.items()}
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
    difference = functools.partial(_difference, plan)
    advice = 'encode again, or choose another --dataset'
    origin = {'source': data.source, 'path': data.path}
    return Job(data, settings, videos, plans.begin(folder, plan, replace, difference, advice, origin))


def video_numbers(job: Job, shard: shards.Shard) -> range:
    """Return the numbers of the videos of a shard, counted within its split."""
    size = job.settings.videos_per_shard
    return range(shard.number * size, min((shard.number + 1) * size, len(job.videos[shard.split])))


def encode_shard(job: Job, shard: shards.Shard, encode: Encode, rows: int, threads: int) -> Iterator[None]:
    """Encode and write one shard. Yield after each of its videos.

    Args:
      job: encoding task.
      shard: one of `shards.planned_shards`.
      encode: function that encodes a batch.
      rows: R of every batch.
      threads: number of threads that decode videos.

    Raises:
      OSError: the shard cannot be written. Nothing of it remains.
      FloatingPointError: latents are not finite.
    """
    settings, numbers = job.settings, video_numbers(job, shard)
    read = grain.MapDataset.range(numbers.start, numbers.stop).map(lambda n: _read_records(job, shard.split, int(n)))
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
                writer.add(*_make_example(waiting.popleft(), parts, settings))
                parts, written = [], written + 1
                if written % per_video == 0:
                    yield
        writer.commit()


def merge(name: str, data_dir: str) -> dict[str, Any]:
    """Make a dataset from finished shards and return preparation.json. Repeated calls give the same files.

    Raises:
      ConfigError: a shard is missing or belongs to another plan.
    """
    plan, folder = plans.read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    settings = _settings(plan)
    expected = {split: rows * settings.records_per_video(split) for split, rows in plan['rows'].items()}
    done = dataset.join(folder, plan, expected, latents.make_features(settings))
    size = sum(record['bytes'] for _, report in done for record in report['videos'])
    origin = {'fingerprint': plan['tokenizer']['fingerprint'], 'source': plan['source'], 'path': plan['path']}
    summary = {'plan': plan['digest'], 'records': expected, 'megabytes': round(size / 1e6, 3)}
    summary |= {prepared.LATENTS: {'settings': plan['settings'], **origin}}
    shards.write_json(folder / prepared.SUMMARY, summary)
    return summary


def check_latents(entries: list[dict[str, Any]], records: Iterator[bytes], plan: dict[str, Any]) -> list[str]:
    """Check that each record of a shard holds the finite latents named in the report. Return one line per problem."""
    settings = _settings(plan)
    features, problems = latents.make_features(settings), []
    for entry, record in zip(entries, records, strict=True):
        example = features.deserialize_example_np(record)
        flip = bool(example['flip_horizontal']), bool(example['flip_vertical'])
        record_id = _record_id(os.fsdecode(example['video_id']), flip, int(example['start']), int(example['interval']))
        if record_id != entry['id'] or any(len(example[name]) != entry['num_frames'] for name in settings.names):
            problems.append(f'{entry["id"]} is not the clip named in the report')
        elif not all(np.isfinite(example[name]).all() for name in settings.names):
            problems.append(f'{entry["id"]} has latents that are not finite')
    return problems


def _read_records(job: Job, split: str, number: int) -> list[_Record]:
    """Read one video as the rows of all its records."""
    settings, video = job.settings, job.videos[split][number]
    piece = settings.frames
    if split == latents.VALIDATION:
        pixels = video.read(range(piece))
        return [_Record(video.video_id, (False, False), 0, 1, None, [pixels])]
    if settings.clips:
        cuts = [draw_stored_clip(settings, number, k, video.num_frames) for k in range(settings.clips)]
        needed = sorted({int(i) for indices, _ in cuts for i in indices})
        pixels, row_of = video.read(needed), {frame: row for row, frame in enumerate(needed)}
        clips = [(pixels[[row_of[int(i)] for i in indices]], int(indices[0]), interval) for indices, interval in cuts]
        return [
            _Record(video.video_id, flip, start, interval, None, [transforms.flip(clip, *flip)])
            for flip in settings.flips
            for clip, start, interval in clips
        ]
    frames = video.read(range(video.num_frames))
    padded = np.pad(frames, [(0, -len(frames) % piece), (0, 0), (0, 0), (0, 0)], mode='edge')
    pieces = [padded[first : first + piece] for first in range(0, len(padded), piece)]
    return [
        _Record(video.video_id, flip, 0, 1, len(frames), [transforms.flip(part, *flip) for part in pieces])
        for flip in settings.flips
    ]


def draw_stored_clip(settings: LatentSettings, number: int, k: int, num_frames: int) -> tuple[np.ndarray, int]:
    """Draw the frames of clip k of training video `number`, and their frame interval, from `settings.seed`."""
    rng = np.random.default_rng([settings.seed, number, k])
    return transforms.draw_clip(rng, num_frames, settings.frames, settings.max_interval)


def _encode_rows(rows: Iterator[np.ndarray], encode: Encode, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield (mean, log variance) [t, h, w, c] of each row.

    The next batch is dispatched before this one is waited for.
    """
    pending: tuple[Any, int] | None = None
    while batch := list(itertools.islice(rows, size)):
        encoded = encode(np.stack(batch + [batch[-1]] * (size - len(batch)))), len(batch)
        if pending is not None:
            yield from _unbatch(*pending)
        pending = encoded
    if pending is not None:
        yield from _unbatch(*pending)


def _unbatch(moments: tuple[Any, Any], count: int) -> Iterator[tuple[np.ndarray, ...]]:
    arrays = [np.asarray(array) for array in moments]
    yield from (tuple(array[row] for array in arrays) for row in range(count))


def _make_example(
    record: _Record, parts: list[tuple[np.ndarray, ...]], settings: LatentSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a record as an example of the dataset, and its entry in the report."""
    moments = {
        name: np.concatenate(pieces)[: record.frames].astype(settings.dtype)
        for name, pieces in zip(settings.names, zip(*parts))
    }
    name = _record_id(record.video_id, record.flip, record.start, record.interval)
    if not all(np.isfinite(array).all() for array in moments.values()):
        raise FloatingPointError(f'latents of {name} are not finite, or too large for {settings.dtype}: use float32')
    clip_fields = {'start': record.start, 'interval': record.interval}
    clip_fields |= {'flip_horizontal': record.flip[0], 'flip_vertical': record.flip[1]}
    size = sum(array.nbytes for array in moments.values())
    entry = {'id': name, 'num_frames': len(moments['mean']), 'bytes': size}
    return {'video_id': os.fsencode(record.video_id), **clip_fields, **moments}, entry


def _record_id(video_id: str, flip: latents.Flip, start: int, interval: int) -> str:
    return f'{video_id} from {start} by {interval}{" mirrored" * flip[0]}{" upside down" * flip[1]}'


def _settings(plan: dict[str, Any]) -> LatentSettings:
    return LatentSettings(**plan['settings'] | {'latent_shape': tuple(plan['settings']['latent_shape'])})


def _difference(new: dict[str, Any], old: dict[str, Any]) -> str:
    for key, value in old['settings'].items():
        if value != new['settings'][key]:
            return f'{key} = {value}, not {new["settings"][key]}'
    if old['tokenizer']['fingerprint'] != new['tokenizer']['fingerprint']:
        return 'another tokenizer or other latent statistics'
    return f'other videos ({sum(old["rows"].values())} then, {sum(new["rows"].values())} now)'
