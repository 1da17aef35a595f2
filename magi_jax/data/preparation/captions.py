"""The captions of a dataset of videos: labels of its own, or a file of the user."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import prepared, sources
from magi_jax.data.preparation import dataset, plans, shards

Captions = dict[str, dict[str, str]]  # split -> video id -> caption


def collect(data: DataConfig, path: str = '') -> Captions:
    """Return the captions of all videos of a dataset, by split.

    Args:
      data: config that names the videos.
      path: file of captions, see `read_file`; '' = labels `caption` of the dataset.

    Raises:
      ConfigError: a video has no caption, or the file cannot be used.
    """
    given = read_file(pathlib.Path(path)) if path else {}
    captions: Captions = {}
    seen: set[str] = set()
    missing: list[str] = []
    for split, video_id, label in _labels(data):
        if video_id in seen:  # a file that is divided in time is in several splits
            continue
        seen.add(video_id)
        text = given.get(video_id, '') if path else label
        if not text.strip():
            missing.append(video_id)
        captions.setdefault(split, {})[video_id] = text
    if missing:
        where = f'add them to {path}' if path else 'give them with --captions FILE'
        raise ConfigError(
            f'{len(missing)} of {len(seen)} videos of {data.source} have no caption, the first is {missing[0]}: {where}'
        )
    return captions


def read_file(path: pathlib.Path) -> dict[str, str]:
    """Read captions by video id from a file of JSON lines or a CSV file, with the entries video_id and caption.

    Raises:
      ConfigError: a line has no such entries, or two captions belong to one id.
    """
    captions: dict[str, str] = {}
    for number, row in _rows(path):
        video_id, caption = (row.get(name) for name in ('video_id', 'caption')) if isinstance(row, dict) else ('', '')
        if not (isinstance(video_id, str) and isinstance(caption, str) and video_id):
            raise ConfigError(f'{path}, line {number}: no texts video_id and caption: give both in every line')
        if captions.setdefault(video_id, caption) != caption:
            raise ConfigError(f'{path}, line {number}: a second caption of {video_id}: give one for each video')
    return captions


def _rows(path: pathlib.Path) -> Iterator[tuple[int, object]]:
    """Yield line number and content of each line."""
    if path.suffix not in ('.jsonl', '.csv'):
        raise ConfigError(f'{path} is neither .jsonl nor .csv: give captions in one of these forms')
    with open(path, encoding='utf-8-sig', newline='') as file:
        try:
            if path.suffix == '.csv':
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
        except (ValueError, csv.Error) as error:
            raise ConfigError(f'{path} cannot be read as {path.suffix[1:]} ({error}): correct the file') from error


def _labels(data: DataConfig) -> Iterator[tuple[str, str, str]]:
    """Yield split, id and own caption ('' = none) of every video."""
    if prepared_ids := _prepared_ids(data):
        yield from ((split, video_id, '') for split, video_id in prepared_ids)
        return
    for split in sorted(sources.split_names(data)):
        source = _open_source(data, split)
        for index in range(len(source) if source else 0):
            video = source[index]
            yield split, video.video_id, str(video.labels.get(sources.CAPTION, ''))


def _prepared_ids(data: DataConfig) -> list[tuple[str, str]]:
    """Return split and id of every video of a prepared dataset, from its reports. Return [] for other datasets."""
    if data.source == sources.FOLDER or prepared.read_summary(data.source, data.path) is None:
        return []
    plan, folder = plans.read_plan(data.source, data.path), prepared.dataset_folder(data.source, data.path)
    reports = ((shard.split, dataset.read_report(shard, plan)) for shard in shards.planned_shards(folder, plan))
    return [(split, video['id']) for split, report in reports for video in report['videos']]


def _open_source(data: DataConfig, split: str) -> sources.Source | None:
    """Open a split with videos of any length. Return None if it is an empty split of a folder."""
    data = dataclasses.replace(data, frames=1)
    if data.source != sources.FOLDER or split == 'train':
        return sources.open_source(data, split)
    try:
        return sources.open_source(data, split)
    except ConfigError:  # a folder needs no validation or test videos
        return None
