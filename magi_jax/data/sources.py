"""Random access to videos, clips of which are cut lazily: a prepared or another TFDS dataset, or a folder of files.

A source has `len(source)`, `source[i] -> Video`, `lengths` int64 [len] (frames of each video, known at opening) and
`skipped`, the files that cannot be used, each with the reason.
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

FOLDER = 'video_folder'  # in place of a dataset's name
SMALL = 100  # files of a folder, above which no split is empty by chance
PROBES = 4  # clips read to measure the rate of a folder that is not kept in memory


@dataclasses.dataclass(frozen=True)
class Video:
    """One video; nothing is decoded before `read`."""

    video_id: str
    num_frames: int
    read: Callable[[Sequence[int]], np.ndarray]  # frame indices [T] -> uint8 [T,height,width,3]
    labels: dict[str, np.ndarray]  # what the dataset tells about the video, e.g. centres [num_frames,3,2]


class Source(Protocol):
    """See the head of this file."""

    lengths: np.ndarray
    skipped: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Video: ...


def open_source(data: DataConfig, split: str) -> Source:
    """The videos of one split; every one of them has at least `data.frames` frames.

    Args:
      data: `source` 'video_folder' reads the files under `path`; anything else is the name of a dataset under the TFDS
        folder `path`: one of launch.prepare_data or of TFDS itself; `bouncing_objects/*` is built on first use.
      split: 'train', 'validation', 'test'; for TFDS also slices such as 'train[:10%]'.

    Raises:
      ConfigError: there is no such dataset, folder or split, it is empty, a TFDS video is too short, or what it holds
        is latents.
    """
    if data.source == FOLDER:
        return FolderSource(data, split)
    summary = prepared.read_summary(data.source, data.path)
    if summary and prepared.LATENTS in summary:
        raise ConfigError(f'{data.source} holds latents, not videos')
    source = PreparedSource(data, split, summary) if summary else TfdsSource(data, split)
    short = np.flatnonzero(source.lengths < data.frames)
    if len(short):
        first = source[short[0]]
        raise ConfigError(
            f'{len(short)} of {len(source)} videos of {data.source} ({split}) have fewer than the {data.frames} frames '
            f'of a clip, the first is {first.video_id} with {first.num_frames}; lower data.frames or leave them out'
        )
    return source


class _KeepBytes(tfds.decode.SkipDecoding):
    """Leaves the frames compressed, so that `read` decompresses only those of the clip."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


class TfdsSource:
    """A split of a TFDS dataset with a feature `frames` or `video`: a Sequence of images or one [T,H,W,3] tensor."""

    def __init__(self, data: DataConfig, split: str):
        builder = _tfds_builder(data)
        self._features = features = builder.info.features
        self._key = next((key for key in ('frames', 'video') if key in features), None)
        if self._key is None:
            raise ConfigError(f'{data.source} has no feature `frames` or `video`; it has: {", ".join(features)}')
        feature = features[self._key]
        sequence = isinstance(feature, tfds.features.Sequence)
        self._frame = feature.feature if sequence else None
        self._size = data.height, data.width
        decoders = {self._key: _KeepBytes()} if sequence else None
        self._records = _open_split(builder, data.source, split, decoders)
        fixed = feature.shape[0]
        frames = (fixed or len(self._records[i][self._key]) for i in range(len(self._records)))
        self.lengths = np.fromiter(frames, np.int64, len(self._records))
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Video:
        example = dict(self._records[int(index)])
        frames = example.pop(self._key)
        video_id = example.pop('video_id', str(index))

        def read(indices: Sequence[int]) -> np.ndarray:
            if self._frame is None:
                return video_file.fit(frames[np.asarray(indices)], *self._size)
            return video_file.fit(np.stack([self._frame.decode_example_np(frames[i]) for i in indices]), *self._size)

        kept = filter(self._is_label, example)
        labels = {key: np.asarray(example[key], self._features[key].np_dtype) for key in kept}
        name = video_id.decode() if isinstance(video_id, bytes) else video_id
        return Video(name, int(self.lengths[index]), read, labels)

    def _is_label(self, key: str) -> bool:
        feature = self._features[key]
        return isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype).kind in 'biuf'


class PreparedSource:
    """A split of a dataset of launch.prepare_data; reading a clip decodes from the keyframes before its frames on.

    `summary` is its preparation.json.
    """

    def __init__(self, data: DataConfig, split: str, summary: dict[str, Any]):
        place = prepared.dataset_folder(data.source, data.path)
        builder = tfds.builder_from_directory(place)
        self._records = _open_split(builder, data.source, split)
        self.lengths = prepared.read_lengths(place, builder.info, split)
        mentioned = set(re.findall(r'[A-Za-z]\w*', split))  # 'train[:10%]+test' are two
        skipped = (skip for skip in prepared.read_skipped(place) if skip['split'] in mentioned)
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
    """Return `data.eval_split`, or where the videos lack it, after a warning, another split: test, else train."""
    if data.source == FOLDER:
        root = pathlib.Path(data.path).expanduser()
        of_user = folder.sort_by_user(folder.walk(root, folder.SUFFIXES)) if root.is_dir() else {}
        there = {split for name, split in of_user.items() if name.lower().endswith(folder.SUFFIXES)}
        known = there or set(splits.SPLITS)
    elif summary := prepared.read_summary(data.source, data.path):
        known = {split for split, videos in summary.get('prepared', {}).items() if videos}
    else:
        return data.eval_split
    instead = next((split for split in ('test', data.train_split) if split in known), None)
    if data.eval_split not in splits.SPLITS or data.eval_split in known or instead is None:
        return data.eval_split
    splits.warn_once(
        f'{data.path if data.source == FOLDER else data.source} has no videos in split {data.eval_split!r} '
        f'(data.eval_split): {instead!r} is used instead; {splits.CHOOSE}'
    )
    return instead


def _open_split(
    builder: tfds.core.DatasetBuilder, name: str, split: str, decoders: dict[str, Any] | None = None
) -> Sequence[dict[str, Any]]:
    try:
        records = builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError) as error:
        raise ConfigError(f'{name} has no split {split!r}; it has: {", ".join(builder.info.splits)}') from error
    if not len(records):
        raise ConfigError(f'{name} has no videos in split {split!r}')
    return records


def _tfds_builder(data: DataConfig) -> tfds.core.DatasetBuilder:
    if data.source.startswith(f'{bouncing_objects.BouncingObjects.name}/'):
        try:
            return bouncing_objects.prepare(data.source, os.fspath(data_folder(data.path)))
        except ValueError as error:
            raise ConfigError(f'data.source: {error}') from error
    place = os.fspath(data_folder(data.path))
    try:
        builder = tfds.builder(data.source, data_dir=place)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ConfigError(f'no dataset {data.source} under {place}; build it with launch.prepare_data') from error
    if not builder.is_prepared():
        raise ConfigError(f'dataset {data.source} is not built under {place}; build it with launch.prepare_data')
    return builder


class FolderSource:
    """A split of a folder of video files, scaled to cover the frame size and cropped at the centre.

    Subfolders train/, validation/ (or val/), test/ are the splits if there is a video in one of them; otherwise
    `splits.assign` decides, from one video on. Damaged and too short files are left out and listed in `skipped`.
    A split of at most `folder.MEMORY` bytes of frames is decoded once and kept in memory.
    """

    def __init__(self, data: DataConfig, split: str):
        root = pathlib.Path(data.path).expanduser()
        if not data.path or not root.is_dir():
            raise ConfigError(f'data.path = {data.path!r} is not a folder; video_folder needs a folder of video files')
        if split not in splits.SPLITS:
            raise ConfigError(f'split {split!r} of a video folder is not one of {", ".join(splits.SPLITS)}')
        self._root, self._size = root, (data.height, data.width)
        outcomes, divided = _split_folder(root, split)
        if not outcomes:
            suffixes = ' '.join(folder.SUFFIXES)
            raise ConfigError(f'{root} has no video files in split {split!r} ({suffixes}): add files; {splits.CHOOSE}')
        self._parts: list[tuple[str, int, int]] = []  # name, first frame, end
        self.skipped: list[tuple[str, str]] = []
        for name, frames in outcomes.items():
            start, end = (0, frames) if name not in divided else splits.time_ranges(frames)[split]
            if isinstance(frames, int) and end - start >= data.frames:
                self._parts.append((name, start, end))
            else:
                reason = f'has {end - start} frames, a clip {data.frames}' if isinstance(frames, int) else frames
                self.skipped.append((decoding.file_text(name), reason))
        if self.skipped:
            logging.warning('%d of %d files skipped, first: %s: %s', len(self.skipped), len(outcomes), *self.skipped[0])
        if not self._parts:
            reason = self.skipped[0][1]
            raise ConfigError(
                f'none of the {len(outcomes)} video files of {root} ({split}) can be used; first: {reason}'
            )
        self.lengths = np.asarray([end - start for _, start, end in self._parts], np.int64)
        self._memory = self._open_memory(data.frames)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Video:
        name, start, end = self._parts[index]
        read = self._read if self._memory is None else self._memory.read
        return Video(decoding.file_text(name), end - start, lambda indices: read(index, indices), {})

    def _read(self, number: int, indices: Sequence[int]) -> np.ndarray:
        name, start, _ = self._parts[number]
        return video_file.read_frames(self._root / name, [start + int(index) for index in indices], *self._size)

    def _open_memory(self, frames: int) -> folder.FrameMemory | None:
        """Return a memory for the frames of the split; None, after a warning with the rate, where they are too many."""
        size = int(self.lengths.sum()) * math.prod(self._size) * 3
        if size <= folder.MEMORY:
            return folder.FrameMemory(lambda n: self._read(n, range(self.lengths[n])), len(self))
        started = time.perf_counter()
        for number in range(0, len(self), -(-len(self) // PROBES)):
            start = (int(self.lengths[number]) - frames) // 2
            self._read(number, range(start, start + frames))
        rate = min(len(self), PROBES) / (time.perf_counter() - started)
        splits.warn_once(
            f'{self._root} is too large to be kept in memory ({size / 2**30:.1f} GiB of frames, at most '
            f'{folder.MEMORY / 2**30:g}): one thread reads {rate:.1f} clips/s; for faster reading, prepare it with '
            f'launch.prepare_data --dataset NAME --source {self._root} and set data.source to NAME'
        )
        return None


def _split_folder(root: pathlib.Path, split: str) -> tuple[dict[str, int | str], set[str]]:
    """Return the outcome of `folder.index` for each file of a split, and which of these files are divided in time."""
    names = [name for name in folder.walk(root, folder.SUFFIXES) if name.lower().endswith(folder.SUFFIXES)]
    of_user = folder.sort_by_user(names)
    if of_user:
        return folder.index(root, [name for name in names if of_user.get(name) == split]), set()
    # A small folder is indexed at once, by several threads; of a large one the split's files and a few others are.
    outcomes = folder.index(root, names) if len(names) <= SMALL else {}

    def frames(name: str) -> int:
        if name not in outcomes:
            outcomes.update(folder.index(root, [name]))
        return outcomes[name] if isinstance(outcomes[name], int) else 0

    chosen = splits.assign(names, lambda name: frames(name) >= splits.CLIP)
    if not any(frames(name) >= splits.CLIP for name in chosen):
        chosen = splits.assign(names, lambda name: frames(name) > 0)
    if text := splits.explain(root, chosen):
        splits.warn_once(text)
    wanted = sorted(name for name, own in chosen.items() if own in (split, None))
    return folder.index(root, wanted), {name for name in wanted if chosen[name] is None}
