"""The files of a prepared dataset: `<data_dir>/<name>/1.0.0/`, a TFDS dataset of stored videos.

plan.json                             what is being prepared, written first
<name>-<split>.array_record-*-of-*    the videos
reports/<split>-*.json                what became of each row of a shard; there when the shard is whole
num_frames.npz                        int32 array for each shard file: lengths, known without reading the videos
skipped.jsonl                         every video that is not in the dataset, and why
dataset_info.json, features.json      TFDS's metadata
preparation.json                      settings and counts, written last: the dataset is whole
"""

import json
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError
from magi_jax.data.cache import data_folder
from magi_jax.data.stored_video import StoredVideo

VERSION = '1.0.0'
PLAN, SUMMARY, LENGTHS, SKIPPED = 'plan.json', 'preparation.json', 'num_frames.npz', 'skipped.jsonl'
LATENTS = 'latents'  # in the summary of a dataset that holds latents in place of videos


def dataset_folder(name: str, data_dir: str) -> pathlib.Path:
    """Where a prepared dataset lies; `data_dir` '' = `cache_folder()`."""
    return data_folder(data_dir) / name / VERSION


def read_summary(name: str, data_dir: str) -> dict[str, Any] | None:
    """preparation.json of a dataset; None where none has been prepared.

    Raises:
      ConfigError: its making has not been finished.
    """
    folder = dataset_folder(name, data_dir)
    if (folder / SUMMARY).is_file():
        return json.loads((folder / SUMMARY).read_text())
    if (folder / PLAN).is_file():
        raise ConfigError(f'{name} under {folder} is not whole; run the command again that began it')
    return None


def make_features(labels: list[str]) -> tfds.features.FeaturesDict:
    """What TFDS stores of each video; class -1 = no label, no classes = no feature `label`."""
    features = {
        'video': tfds.features.Text(),  # keeps any bytes, unlike its name
        'packet_sizes': tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding='bytes'),
        'video_id': tfds.features.Text(),
        'num_frames': np.int32,
        'fps': np.float32,
    }
    return tfds.features.FeaturesDict(features | ({'label': tfds.features.ClassLabel(names=labels)} if labels else {}))


def stored_video(example: dict[str, Any], keyframe_interval: int) -> StoredVideo:
    """The video of an example of the dataset."""
    return StoredVideo(example['video'], np.asarray(example['packet_sizes']), keyframe_interval)


def read_lengths(folder: pathlib.Path, info: tfds.core.DatasetInfo, split: str) -> np.ndarray:
    """Frames of each video of a split or of a slice such as 'train[:10%]', int64 [videos], in the order of TFDS."""
    with np.load(folder / LENGTHS) as lengths:
        parts = [
            lengths[pathlib.PurePath(part.filename).name][part.skip :][: part.take if part.take >= 0 else None]
            for part in info.splits[split].file_instructions
        ]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def read_skipped(folder: pathlib.Path) -> list[dict[str, str]]:
    """The lines of skipped.jsonl: video_id, path, split, reason, detail."""
    return [json.loads(line) for line in (folder / SKIPPED).read_text().splitlines()]
