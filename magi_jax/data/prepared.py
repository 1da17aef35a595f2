"""The files of a prepared dataset: `<data_dir>/<name>/1.0.0/`, a TFDS dataset of stored videos.

It consists of these files:

    plan.json                             the source rows and settings; written first
    <name>-<split>.array_record-*-of-*    the videos
    reports/<split>-*.json                the outcome of each row of a shard; written after the shard
    num_frames.npz                        int32 array for each shard file: video lengths, known without reading videos
    skipped.jsonl                         every video that is not in the dataset, with the reason
    dataset_info.json, features.json      TFDS's metadata
    preparation.json                      settings and counts; written last, so it marks a finished dataset
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
LATENTS = 'latents'  # key in the summary of a dataset that holds latents in place of videos


def dataset_folder(name: str, data_dir: str) -> pathlib.Path:
    """Return the folder of a prepared dataset; `data_dir` '' = `cache_folder()`."""
    return data_folder(data_dir) / name / VERSION


def read_summary(name: str, data_dir: str) -> dict[str, Any] | None:
    """Read preparation.json of a dataset. Return None if there is no prepared dataset of this name.

    Raises:
      ConfigError: the preparation is not finished.
    """
    folder = dataset_folder(name, data_dir)
    if (folder / SUMMARY).is_file():
        return json.loads((folder / SUMMARY).read_text())
    if (folder / PLAN).is_file():
        raise ConfigError(f'{name} under {folder} is not finished: run the command that started it again')
    return None


def make_features(labels: list[str]) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a video. Class -1 = no label; without classes there is no feature `label`."""
    features = {
        'video': tfds.features.Text(),  # stores arbitrary bytes, despite its name
        'packet_sizes': tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding='bytes'),
        'video_id': tfds.features.Text(),
        'num_frames': np.int32,
        'fps': np.float32,
    }
    return tfds.features.FeaturesDict(features | ({'label': tfds.features.ClassLabel(names=labels)} if labels else {}))


def stored_video(example: dict[str, Any], keyframe_interval: int) -> StoredVideo:
    """Return the video of an example of the dataset."""
    return StoredVideo(example['video'], np.asarray(example['packet_sizes']), keyframe_interval)


def read_lengths(folder: pathlib.Path, info: tfds.core.DatasetInfo, split: str) -> np.ndarray:
    """Read the number of frames of each video, int64 [videos], in the order of TFDS.

    `split` is a split or a slice such as 'train[:10%]'.
    """
    with np.load(folder / LENGTHS) as lengths:
        parts = [
            lengths[pathlib.PurePath(part.filename).name][part.skip :][: part.take if part.take >= 0 else None]
            for part in info.splits[split].file_instructions
        ]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def read_skipped(folder: pathlib.Path) -> list[dict[str, str]]:
    """Read the lines of skipped.jsonl: video_id, path, split, reason, detail."""
    return [json.loads(line) for line in (folder / SKIPPED).read_text().splitlines()]
