"""Random access to videos of a prepared dataset, another TFDS dataset, or a folder of files. Clips are cut lazily.

A source has `len(source)`, `source[i] -> Video`, `lengths` int64 [len], the number of frames of each video, and
`skipped`, the unusable files with their reasons. Lengths are known when the source is opened.
"""

import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import decoding, folder, prepared, splits, stored_video, video_file
from magi_jax.data.builders import bouncing_objects
from magi_jax.data.cache import data_folder

FOLDER = 'video_folder'  # value of data.source for a folder of files
SMALL_FOLDER = 100  # Number of files: in larger folders, no split is empty by chance.
CAPTION = 'caption'  # label of a TFDS dataset: a text
PROBE_CLIPS = 4  # Clips that measure the reading rate of a folder that is too large for memory.


@dataclasses.dataclass(frozen=True)
class Video:
    """One video. Nothing is decoded before `read`."""

    video_id: str
    num_frames: int
    read: Callable[[Sequence[int]], np.ndarray]  # frame indices [T] -> uint8 [T,height,width,3]
    labels: dict[str, np.ndarray | np.str_]  # labels of the dataset, for example centres [num_frames,3,2], or caption


class Source(Protocol):
    """The interface of a source, described in the module docstring."""

    lengths: np.ndarray
    skipped: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Video: ...


def open_source(data: DataConfig, split: str) -> Source:
    """Open the videos of one split. Every video has at least `data.frames` frames.

    Args:
      data: config with `source` and `path`. Source 'video_folder' reads the files under `path`. Other sources are names
        of datasets in the TFDS folder `path`, made by launch.prepare_data or by TFDS. `bouncing_objects/*` is built on
        first use.
      split: 'train', 'validation' or 'test'; for TFDS also slices such as 'train[:10%]'.

    Raises:
      ConfigError: the dataset, folder or split is missing or empty, a TFDS video is too short, or the dataset holds
        latents.
    """
    if data.source == FOLDER:
        return FolderSource(data, split)
    summary = prepared.read_summary(data.source, data.path)
    if summary and prepared.LATENTS in summary:
        raise ConfigError(f'{data.source} holds latents, not videos: set data.source to the videos')
    source = PreparedSource(data, split, summary) if summary else TfdsSource(data, split)
    short = np.flatnonzero(source.lengths < data.frames)
    if len(short):
        first = source[short[0]]
        raise ConfigError(
            f'{len(short)} of {len(source)} videos of {data.source} ({split}) have fewer frames than data.frames = '
            f'{data.frames}, the first is {first.video_id} with {first.num_frames}: lower data.frames or remove them'
        )
    return source


class _SkipFrameDecoding(tfds.decode.SkipDecoding):
    """Keeps the frames compressed, so that `read` decompresses only the frames of the clip."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


class TfdsSource:
    """A split of a TFDS dataset with a feature `frames` or `video`: a Sequence of images or one [T,H,W,3] tensor."""

    def __init__(self, data: DataConfig, split: str):
        builder = _tfds_builder(data)
        self._features = features = builder.info.features
        self._key = next((key for key in ('frames', 'video') if key in features), None)
        if self._key is None:
            raise ConfigError(f'{data.source} has no feature `frames` or `video`, only {", ".join(features)}')
        feature = features[self._key]
        sequence = isinstance(feature, tfds.features.Sequence)
        self._frame = feature.feature if sequence else None
        self._size = data.height, data.width
        decoders = {self._key: _SkipFrameDecoding()} if sequence else None
        self._split, self._records = split, _open_split(builder, data.source, split, decoders)
        fixed_frames = feature.shape[0]
        frame_counts = (fixed_frames or len(self._records[i][self._key]) for i in range(len(self._records)))
        self.lengths = np.fromiter(frame_counts, np.int64, len(self._records))
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Video:
        example = dict(self._records[int(index)])
        frames = example.pop(self._key)
        video_id = example.pop('video_id', f'{self._split}/{index}')

        def read(indices: Sequence[int]) -> np.ndarray:
            if self._frame is None:
                return video_file.fit(frames[np.asarray(indices)], *self._size)
            return video_file.fit(np.stack([self._frame.decode_example_np(frames[i]) for i in indices]), *self._size)

        label_keys = filter(self._is_label, example)
        labels = {key: np.asarray(example[key], self._features[key].np_dtype) for key in label_keys}
        if CAPTION in example and isinstance(self._features[CAPTION], tfds.features.Text):
            labels[CAPTION] = np.str_(example[CAPTION].decode())
        name = video_id.decode() if isinstance(video_id, bytes) else video_id
        return Video(name, int(self.lengths[index]), read, labels)

    def _is_label(self, key: str) -> bool:
        feature = self._features[key]
        return isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype).kind in 'biuf'


class PreparedSource:
    """A split of a dataset of launch.prepare_data. Reading a clip decodes from the keyframe before its frames.

    `summary` is the content of preparation.json.
    """

    def __init__(self, data: DataConfig, split: str, summary: dict[str, Any]):
        root = prepared.dataset_folder(data.source, data.path)
        builder = tfds.builder_from_directory(root)
        self._records = _open_split(builder, data.source, split)
        self.lengths = prepared.read_lengths(root, builder.info, split)
        split_names = set(re.findall(r'[A-Za-z]\w*', split))  # 'train[:10%]+test' has two
        skipped = (skip for skip in prepared.read_skipped(root) if skip['split'] in split_names)
        self.skipped = [(skip['video_id'], f'{skip["reason"]}: {skip["detail"]}') for skip in skipped]
        self._size = data.height, data.width
        self._keyframe_interval = summary['settings']['keyframe_interval']

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Video:
        example = self._records[int(index)]
        video = prepared.stored_video(example, self._keyframe_interval)
        types = {'label': np.int32, 'fps': np.float32}
        labels = {key: np.asarray(example[key], dtype) for key, dtype in types.items() if key in example}
        name = os.fsdecode(example['video_id'])
        return Video(name, len(video), lambda indices: stored_video.read(video, indices, *self._size), labels)


def eval_split(data: DataConfig) -> str:
    """Return `data.eval_split`. If the videos have no such split, log a warning and return test or train instead."""
    if data.source != FOLDER and prepared.read_summary(data.source, data.path) is None:
        return data.eval_split
    available_splits = split_names(data)
    fallback = next((split for split in ('test', data.train_split) if split in available_splits), None)
    if data.eval_split not in splits.SPLITS or data.eval_split in available_splits or fallback is None:
        return data.eval_split
    splits.warn_once(
        f'{data.path if data.source == FOLDER else data.source} has no videos in split {data.eval_split!r} '
        f'(data.eval_split): {fallback!r} is used instead; {splits.SPLIT_HINT}'
    )
    return fallback


def split_names(data: DataConfig) -> set[str]:
    """Return the names of all splits that may hold videos. Raise ConfigError if the dataset does not exist."""
    if data.source == FOLDER:
        root = pathlib.Path(data.path).expanduser()
        user_splits = folder.splits_from_subfolders(folder.walk(root, folder.SUFFIXES)) if root.is_dir() else {}
        nonempty_splits = {split for name, split in user_splits.items() if name.lower().endswith(folder.SUFFIXES)}
        return nonempty_splits or set(splits.SPLITS)
    if summary := prepared.read_summary(data.source, data.path):
        return {split for split, videos in summary.get('prepared', {}).items() if videos}
    return set(_tfds_builder(data).info.splits)


def dataset_folder(data: DataConfig) -> pathlib.Path:
    """Return the folder that holds the files of the dataset. Raise ConfigError if the dataset does not exist."""
    if data.source == FOLDER:
        return pathlib.Path(data.path).expanduser()
    if prepared.read_summary(data.source, data.path):
        return prepared.dataset_folder(data.source, data.path)
    return pathlib.Path(_tfds_builder(data).data_path)


def _open_split(
    builder: tfds.core.DatasetBuilder, name: str, split: str, decoders: dict[str, Any] | None = None
) -> Sequence[dict[str, Any]]:
    try:
        records = builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError) as error:
        raise ConfigError(f'{name} has no split {split!r}: choose one of {", ".join(builder.info.splits)}') from error
    if not len(records):
        raise ConfigError(f'{name} has no videos in split {split!r}: choose another split')
    return records


def _tfds_builder(data: DataConfig) -> tfds.core.DatasetBuilder:
    if data.source.startswith(f'{bouncing_objects.BouncingObjects.name}/'):
        try:
            return bouncing_objects.prepare(data.source, os.fspath(data_folder(data.path)))
        except ValueError as error:
            raise ConfigError(f'data.source: {error}') from error
    data_dir = os.fspath(data_folder(data.path))
    try:
        builder = tfds.builder(data.source, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ConfigError(f'no dataset {data.source} under {data_dir}: build it with launch.prepare_data') from error
    if not builder.is_prepared():
        raise ConfigError(f'dataset {data.source} is not built under {data_dir}: build it with launch.prepare_data')
    return builder


class FolderSource:
    """A split of a folder of video files, scaled to cover the frame size and cropped at the centre.

    Subfolders train/, validation/ (or val/) and test/ are the splits if one of them holds a video. Otherwise
    `splits.assign` chooses the splits, even for a single video. Damaged and too short files are left out and listed in
    `skipped`. A split of at most `folder.MAX_CACHE_BYTES` bytes of frames is decoded once and kept in memory.
    """

    def __init__(self, data: DataConfig, split: str):
        root = pathlib.Path(data.path).expanduser()
        if not data.path or not root.is_dir():
            raise ConfigError(f'data.path = {data.path!r} is not a folder: give a folder of video files')
        if split not in splits.SPLITS:
            raise ConfigError(f'split {split!r} is not one of {", ".join(splits.SPLITS)}: choose one of them')
        self._root, self._size = root, (data.height, data.width)
        outcomes, divided = _split_folder(root, split)
        if not outcomes:
            suffixes = ' '.join(folder.SUFFIXES)
            raise ConfigError(
                f'{root} has no video files in split {split!r} ({suffixes}): add files; {splits.SPLIT_HINT}'
            )
        self._parts: list[tuple[str, int, int]] = []  # name, first frame, end
        self.skipped: list[tuple[str, str]] = []
        for name, frames in outcomes.items():
            start, end = (0, frames) if name not in divided else splits.time_ranges(frames)[split]
            if isinstance(frames, int) and end - start >= data.frames:
                self._parts.append((name, start, end))
            else:
                needed = f'fewer than data.frames = {data.frames}'
                reason = f'has {end - start} frames, {needed}' if isinstance(frames, int) else frames
                self.skipped.append((decoding.file_text(name), reason))
        if self.skipped:
            counts = len(self.skipped), len(outcomes)
            logging.warning('%d of %d files are skipped; the first is %s: %s', *counts, *self.skipped[0])
        if not self._parts:
            reason = self.skipped[0][1]
            raise ConfigError(
                f'none of the {len(outcomes)} video files of {root} ({split}) can be used (first: {reason}): '
                'give other files'
            )
        self.lengths = np.asarray([end - start for _, start, end in self._parts], np.int64)
        self._frame_cache = self._open_frame_cache(data.frames)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Video:
        name, start, end = self._parts[index]
        read = self._read if self._frame_cache is None else self._frame_cache.read
        return Video(decoding.file_text(name), end - start, lambda indices: read(index, indices), {})

    def _read(self, number: int, indices: Sequence[int]) -> np.ndarray:
        name, start, _ = self._parts[number]
        return video_file.read_frames(self._root / name, [start + int(index) for index in indices], *self._size)

    def _open_frame_cache(self, frames: int) -> folder.FrameCache | None:
        """Return a cache for the frames of the split.

        Return None if the frames do not fit in memory, after a warning with the measured reading rate.
        """
        size = int(self.lengths.sum()) * math.prod(self._size) * 3
        if size <= folder.MAX_CACHE_BYTES:
            return folder.FrameCache(lambda n: self._read(n, range(self.lengths[n])), len(self))
        started = time.perf_counter()
        for number in range(0, len(self), -(-len(self) // PROBE_CLIPS)):
            start = (int(self.lengths[number]) - frames) // 2
            self._read(number, range(start, start + frames))
        rate = min(len(self), PROBE_CLIPS) / (time.perf_counter() - started)
        splits.warn_once(
            f'{self._root} is too large to be kept in memory ({size / 2**30:.1f} GiB of frames, at most '
            f'{folder.MAX_CACHE_BYTES / 2**30:g}), and one thread reads {rate:.1f} clips/s: for faster reading, '
            f'prepare it with launch.prepare_data --dataset NAME --source {self._root} and set data.source to NAME'
        )
        return None


def _split_folder(root: pathlib.Path, split: str) -> tuple[dict[str, int | str], set[str]]:
    """Return the outcome of `folder.index` for each file of a split, and the set of files that are divided in time."""
    names = [name for name in folder.walk(root, folder.SUFFIXES) if name.lower().endswith(folder.SUFFIXES)]
    user_splits = folder.splits_from_subfolders(names)
    if user_splits:
        return folder.index(root, [name for name in names if user_splits.get(name) == split]), set()
    # Index a small folder at once, with several threads. In a large folder, index only the files of the split and the
    # few files that `splits.assign` asks for.
    outcomes = folder.index(root, names) if len(names) <= SMALL_FOLDER else {}

    def count_frames(name: str) -> int:
        if name not in outcomes:
            outcomes.update(folder.index(root, [name]))
        return outcomes[name] if isinstance(outcomes[name], int) else 0

    assignment = splits.assign(names, lambda name: count_frames(name) >= splits.CLIP_FRAMES)
    if not any(count_frames(name) >= splits.CLIP_FRAMES for name in assignment):
        assignment = splits.assign(names, lambda name: count_frames(name) > 0)
    if text := splits.explain(root, assignment):
        splits.warn_once(text)
    selected = sorted(name for name, assigned in assignment.items() if assigned in (split, None))
    return folder.index(root, selected), {name for name in selected if assignment[name] is None}
