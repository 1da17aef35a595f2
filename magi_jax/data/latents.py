"""Datasets of latents: posterior moments of clips that launch.encode_latents computes once, in place of videos.

For a frame-wise tokenizer, all frames of a training video are stored, so clips are cut as from videos. Latents of a
temporal tokenizer belong to a clip: K clips of each video are stored, with their start and frame interval. In both
cases every flip that training draws is stored, because the latents of a flipped video are not the flipped latents.
Validation clips start at frame 0.

A record is one video or clip in one flip. Records are ordered by video, then flip, then clip.

Dimension key: B clips, T latent frames (of a video or clip), h w latent rows and columns, c channels, K clips of a
video.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import prepared, sources

# mean and, if latents have a variance, log_variance: [T, h, w, c] each; and video_id, the id of the video as a str
Moments = dict[str, Any]
Flip = tuple[bool, bool]  # left-right, upside down
TRAIN, VALIDATION = SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """Settings that determine the records, besides the videos and the tokenizer. Names match `DataConfig`."""

    train_split: str
    eval_split: str
    height: int
    width: int
    frames: int
    context_frames: int
    max_interval: int
    flip_horizontal: bool
    flip_vertical: bool
    clips: int  # K, clips of a training video; `0` = the whole video (frame-wise tokenizers)
    seed: int  # seed of these clips
    latent_shape: tuple[int, int, int, int]  # for a clip of `frames` frames
    variance: bool  # True if latents have one
    dtype: str  # dtype on disk
    videos_per_shard: int

    @property
    def flips(self) -> list[Flip]:
        """All flips that training may draw, in the order of the records."""
        options = [[False, True] if allowed else [False] for allowed in (self.flip_vertical, self.flip_horizontal)]
        return [(horizontal, vertical) for vertical, horizontal in itertools.product(*options)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the moments."""
        return ('mean', 'log_variance') if self.variance else ('mean',)

    def records_per_video(self, split: str) -> int:
        """Return the number of records of each video of a split."""
        return 1 if split == VALIDATION else len(self.flips) * max(1, self.clips)


@dataclasses.dataclass(frozen=True)
class Description:
    """Metadata of a finished dataset of latents.

    Attributes:
      settings: settings of the records.
      fingerprint: fingerprint of the tokenizer and its statistics.
      source: name of the dataset of videos.
      path: folder of that dataset.
    """

    settings: LatentSettings
    fingerprint: str
    source: str
    path: str


def describe(data: DataConfig) -> Description | None:
    """Read the metadata of the latents that `data.source` names. Return None if it names no dataset of latents.

    Raises:
      ConfigError: the encoding is not finished.
    """
    summary = None if data.source == sources.FOLDER else prepared.read_summary(data.source, data.path)
    if summary is None or prepared.LATENTS not in summary:
        return None
    metadata = summary[prepared.LATENTS]
    settings = metadata['settings'] | {'latent_shape': tuple(metadata['settings']['latent_shape'])}
    return Description(LatentSettings(**settings), metadata['fingerprint'], metadata['source'], metadata['path'])


def source_videos_config(data: DataConfig) -> DataConfig:
    """Return `data` with a dataset of latents replaced by the videos that they were made from."""
    description = describe(data)
    if description is None:
        return data
    return dataclasses.replace(data, source=description.source, path=description.path)


def batch_shapes(data: DataConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]] | None:
    """Return shape and dtype of one clip's moments in a batch, or None if `data` names no latents."""
    description = describe(data)
    if description is None:
        return None
    settings = description.settings
    shape = settings.latent_shape if settings.clips else (data.frames, *settings.latent_shape[1:])
    return {name: (shape, np.dtype(settings.dtype)) for name in settings.names}


def make_features(settings: LatentSettings) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a record."""
    shape = (None, *settings.latent_shape[1:])
    moment = {
        name: tfds.features.Tensor(shape=shape, dtype=np.dtype(settings.dtype), encoding='bytes')
        for name in settings.names
    }
    place = {'start': np.int32, 'interval': np.int32, 'flip_horizontal': np.bool_, 'flip_vertical': np.bool_}
    return tfds.features.FeaturesDict({'video_id': tfds.features.Text(), **place, **moment})


class LatentSource:
    """One split of a dataset of latents, indexed by video.

    Args:
      data: config that names the dataset.
      description: metadata of the dataset.
      split: TRAIN or VALIDATION.

    Raises:
      ConfigError: the latents belong to other clips than `data` requests. The message names the field.
    """

    def __init__(self, data: DataConfig, description: Description, split: str):
        self.settings = settings = description.settings
        self._per_video = settings.records_per_video(split)
        _check(data, settings)
        folder = prepared.dataset_folder(data.source, data.path)
        builder = tfds.builder_from_directory(folder)
        self._records = builder.as_data_source(split)
        self.lengths = prepared.read_lengths(folder, builder.info, split)[:: self._per_video]  # T of each video
        needed = settings.latent_shape[0] if settings.clips else data.frames
        if len(short := np.flatnonzero(self.lengths < needed)):
            raise ConfigError(
                f'{len(short)} {split} videos of {data.source} have fewer than {needed} latent frames: lower '
                'data.frames or encode longer videos'
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def read_frames(self, index: int, flip: Flip, frames: Sequence[int]) -> Moments:
        """Return the given latent frames of a video that is stored completely."""
        record = self._records[self._per_video * int(index) + self.settings.flips.index(flip)]
        return self._moments(record, np.asarray(frames))

    def clip(self, index: int, flip: Flip, number: int) -> tuple[Moments, int]:
        """Return clip `number` (0 to K-1) of a video, and its frame interval."""
        first = self._per_video * int(index) + self.settings.flips.index(flip) * self.settings.clips
        record = self._records[first + int(number)]
        return self._moments(record), int(record['interval'])

    def validation_clip(self, index: int, frames: int) -> Moments:
        """Return the first latent frames of a validation video. `frames` applies to frame-wise tokenizers only."""
        return self._moments(self._records[int(index)], slice(None if self.settings.clips else frames))

    def _moments(self, record: dict[str, Any], frames: Any = slice(None)) -> Moments:
        moments = {name: record[name][frames] for name in self.settings.names}
        return moments | {'video_id': os.fsdecode(record['video_id'])}


def open_latents(data: DataConfig, split: str) -> LatentSource | None:
    """Open a split of the latents that `data.source` names, or return None. Raise the errors of LatentSource."""
    description = describe(data)
    return None if description is None else LatentSource(data, description, split)


def _check(data: DataConfig, settings: LatentSettings) -> None:
    field_names = ['height', 'width', 'train_split', 'eval_split']
    if settings.clips:
        field_names += ['frames', 'context_frames', 'max_interval']
    for name in field_names:
        stored, requested = getattr(settings, name), getattr(data, name)
        if stored != requested:
            what = f'latents of data.{name} = {stored!r}, not {requested!r}'
            raise ConfigError(f'{data.source} holds {what}: encode them again')
    for name in ('flip_horizontal', 'flip_vertical'):
        if getattr(data, name) and not getattr(settings, name):
            raise ConfigError(f'{data.source} holds no latents of flipped videos: set data.{name} to False')
