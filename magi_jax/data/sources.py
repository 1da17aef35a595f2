"""Random access to videos, clips of which are cut lazily: a prepared or another TFDS dataset, or a folder of files.

A source has `len(source)`, `source[i] -> Video`, `lengths` int64 [len] (frames of each video, known at opening) and
`skipped`, the files that cannot be used, each with the reason.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import decoding, prepared, stored_video, video_file
from magi_jax.data.builders import bouncing_objects
from magi_jax.data.cache import cache_folder, data_folder

SUFFIXES = ('.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
SPLITS = ('train', 'validation', 'test')
FOLDER = 'video_folder'  # in place of a dataset's name


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
        folder = prepared.dataset_folder(data.source, data.path)
        builder = tfds.builder_from_directory(folder)
        self._records = _open_split(builder, data.source, split)
        self.lengths = prepared.read_lengths(folder, builder.info, split)
        mentioned = set(re.findall(r'[A-Za-z]\w*', split))  # 'train[:10%]+test' are two
        skipped = (skip for skip in prepared.read_skipped(folder) if skip['split'] in mentioned)
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
        name = example['video_id'].decode()
        return Video(name, len(video), lambda indices: stored_video.read(video, indices, *self._size), labels)


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
    folder = os.fspath(data_folder(data.path))
    try:
        builder = tfds.builder(data.source, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ConfigError(f'no dataset {data.source} under {folder}; build it with launch.prepare_data') from error
    if not builder.is_prepared():
        raise ConfigError(f'dataset {data.source} is not built under {folder}; build it with launch.prepare_data')
    return builder


class FolderSource:
    """A split of a folder of video files, scaled to cover the frame size and cropped at the centre.

    Subfolders train/, validation/, test/ are the splits if there is at least one of them; otherwise a file's relative
    name decides (90/5/5 %), so adding files never moves others between splits. Damaged and too short files are left
    out and listed in `skipped`.
    """

    def __init__(self, data: DataConfig, split: str):
        root = pathlib.Path(data.path).expanduser()
        if not data.path or not root.is_dir():
            raise ConfigError(f'data.path = {data.path!r} is not a folder; video_folder needs a folder of video files')
        names = _split_names(root, split)
        if not names:
            raise ConfigError(
                f'{root} has no video files in split {split!r} ({" ".join(SUFFIXES)}); add files, or sort them into '
                'subfolders train/ validation/ test/'
            )
        self._root, self._size = root, (data.height, data.width)
        usable, self.skipped = [], []
        for name, outcome in _index(root, names).items():
            if isinstance(outcome, int) and outcome >= data.frames:
                usable.append((name, outcome))
            else:
                reason = f'has {outcome} frames, a clip {data.frames}' if isinstance(outcome, int) else outcome
                self.skipped.append((decoding.file_text(name), reason))
        if self.skipped:
            logging.warning('%d of %d files skipped, first: %s: %s', len(self.skipped), len(names), *self.skipped[0])
        if not usable:
            reason = self.skipped[0][1]
            raise ConfigError(f'none of the {len(names)} video files of {root} ({split}) can be used; first: {reason}')
        self._names = [name for name, _ in usable]
        self.lengths = np.asarray([length for _, length in usable], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Video:
        path = self._root / self._names[index]
        length = int(self.lengths[index])
        name = decoding.file_text(self._names[index])
        return Video(name, length, lambda indices: video_file.read_frames(path, indices, *self._size), {})


def _split_names(root: pathlib.Path, split: str) -> list[str]:
    """Sorted names, relative to `root`, of the video files of a split."""
    if split not in SPLITS:
        raise ConfigError(f'split {split!r} of a video folder is not one of {", ".join(SPLITS)}')
    sorted_by_user = any((root / name).is_dir() for name in SPLITS)
    base = root / split if sorted_by_user else root
    paths = (path for path in base.rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    return names if sorted_by_user else [name for name in names if hashed_split(name) == split]


def hashed_split(name: str) -> str:
    """90 % of all names train, 5 % validation, 5 % test."""
    percent = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) * 100 >> 64
    return 'train' if percent < 90 else 'validation' if percent < 95 else 'test'


def _index(root: pathlib.Path, names: list[str]) -> dict[str, int | str]:
    """Number of frames of each file, or why it is unusable. Files are decoded once and remembered till they change."""
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    memory = cache_folder() / 'video_folder' / f'{key}.json'
    known = _read_json(memory)
    stamps = {name: [(root / name).stat().st_size, (root / name).stat().st_mtime_ns] for name in names}
    new = [name for name in names if name not in known or known[name][0] != stamps[name]]
    if new:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = pool.map(lambda name: _probe(root / name), new)
            known |= {name: [stamps[name], outcome] for name, outcome in zip(new, outcomes, strict=True)}
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps(known))
        temporary.replace(memory)
    return {name: known[name][1] for name in names}


def _probe(path: pathlib.Path) -> int | str:
    try:
        return video_file.count_frames(path)
    except video_file.VideoError as error:
        return str(error)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
