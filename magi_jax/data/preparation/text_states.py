"""Encodes the captions of a dataset to text states (data/texts.py): plan, encode shard by shard, merge, check.

All batches hold captions of one shard only, so a resumed run writes the same bytes.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from magi_jax.data import prepared, texts
from magi_jax.data.preparation import dataset, plans, shards
from magi_jax.data.preparation.captions import Captions
from magi_jax.text_encoders.api import EncoderDescription, TextEncoder, keep_description, parse_description
from magi_jax.text_encoders.states import STORED_DTYPE


@dataclasses.dataclass(frozen=True)
class Job:
    """An encoding task: the captions and the plan."""

    folder: pathlib.Path
    captions: Captions
    plan: dict[str, Any]


def make_job(
    name: str,
    data_dir: str,
    captions: Captions,
    encoder: EncoderDescription,
    videos_per_shard: int,
    replace: bool = False,
) -> Job:
    """Write plan.json, unless the same plan exists.

    Args:
      name: name of the dataset of texts, and
      data_dir: its folder, both from `texts.location`.
      captions: captions by split.
      encoder: description of the encoder.
      videos_per_shard: number of captions in each file.
      replace: True deletes texts of other captions or of another encoder.

    Raises:
      ConfigError: the folder holds other texts.
    """
    content = {
        'dataset': name,
        'settings': {'videos_per_shard': videos_per_shard},
        texts.ENCODER: dataclasses.asdict(encoder),
        'captions': hashlib.sha256(json.dumps(captions).encode()).hexdigest(),
        'rows': {split: len(rows) for split, rows in captions.items()},
    }
    plan = content | {'digest': hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    folder = prepared.dataset_folder(name, data_dir)
    return Job(folder, captions, plans.begin(folder, plan, replace, lambda old: _difference(old, plan), 'encode again'))


def rows_of(job: Job, shard: shards.Shard) -> list[tuple[str, str]]:
    """Return id and caption of each video of a shard."""
    start, size = shard.number * job.plan['settings']['videos_per_shard'], job.plan['settings']['videos_per_shard']
    return list(itertools.islice(job.captions[shard.split].items(), start, start + size))


def encode_shard(job: Job, shard: shards.Shard, encoder: TextEncoder, batch: int) -> Iterator[int]:
    """Encode and write one shard. Yield the number of captions of each batch after it is encoded.

    Raises:
      OSError: the shard cannot be written. Nothing of it remains.
      ConfigError: as in `TextEncoder.encode`.
    """
    rows = rows_of(job, shard)
    with shards.ShardWriter(shard, job.plan['digest'], texts.make_features(encoder.width)) as writer:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            states, mask = encoder.encode([caption for _, caption in part])
            for (video_id, caption), row, length in zip(part, states, mask.sum(1), strict=True):
                kept = row[:length].astype(STORED_DTYPE)
                example = {'video_id': os.fsencode(video_id), 'caption': caption, 'states': kept}
                writer.add(example, {'id': video_id, 'num_frames': len(kept), 'bytes': kept.nbytes})
            yield len(part)
        writer.commit()


def merge(name: str, data_dir: str) -> dict[str, Any]:
    """Make a dataset from finished shards and return preparation.json. Repeated calls give the same files.

    Raises:
      ConfigError: a shard is missing or belongs to another plan.
    """
    plan, folder = plans.read_plan(name, data_dir), prepared.dataset_folder(name, data_dir)
    encoder = parse_description(plan[texts.ENCODER])
    done = dataset.join(folder, plan, plan['rows'], texts.make_features(encoder.width))
    ids: dict[str, list[str]] = {split: [] for split in plan['rows']}
    for shard, report in done:
        ids[shard.split] += [entry['id'] for entry in report['videos']]
    shards.write_text(folder / texts.VIDEO_IDS, json.dumps(ids) + '\n')
    keep_description(folder, encoder)
    size = sum(entry['bytes'] for _, report in done for entry in report['videos'])
    summary = {'plan': plan['digest'], 'records': plan['rows'], 'megabytes': round(size / 1e6, 3)}
    shards.write_json(folder / prepared.SUMMARY, summary | {texts.ENCODER: plan[texts.ENCODER]})
    return summary


def check_texts(entries: list[dict[str, Any]], records: Iterator[bytes], plan: dict[str, Any]) -> list[str]:
    """Check that each record of a shard holds the finite states named in the report. Return one line per problem."""
    features, problems = texts.make_features(plan[texts.ENCODER]['width']), []
    for entry, record in zip(entries, records, strict=True):
        example = features.deserialize_example_np(record)
        if os.fsdecode(example['video_id']) != entry['id'] or len(example['states']) != entry['num_frames']:
            problems.append(f'{entry["id"]} is not the text named in the report')
        elif not np.isfinite(example['states']).all():
            problems.append(f'{entry["id"]} has states that are not finite')
    return problems


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for group in ('settings', texts.ENCODER):
        for key, value in old[group].items():
            if value != new[group][key]:
                return f'{key} = {value}, not {new[group][key]}'
    return f'other captions ({sum(old["rows"].values())} then, {sum(new["rows"].values())} now)'
