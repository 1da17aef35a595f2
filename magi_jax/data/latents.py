"""Datasets of latents: the posterior moments of clips, computed once by launch.encode_latents, in place of videos.

Of a frame-wise tokenizer all frames of a training video are kept, so that clips are cut as from videos. Latents of a
temporal one belong to a clip: K of them are kept of each video, with their start and interval. Either way in every
flip that training draws, as flipped videos have other latents than those flipped. Validation clips start at frame 0.

A record is one video or clip in one flip; records lie video by video, then flip by flip, then clip by clip.

B clips, T latent frames (of a video or clip), h w latent rows and columns, c channels, K clips of a video.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import prepared, sources

Moments = dict[str, np.ndarray]  # mean and, where latents have a variance, log_variance: [T, h, w, c] each
Flip = tuple[bool, bool]  # left-right, upside down
TRAIN, VALIDATION = SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """What decides the records, apart from the videos and the tokenizer; names as in `DataConfig` mean the same."""

    train_split: str
    eval_split: str
    height: int
    width: int
    frames: int
    context_frames: int
    max_interval: int
    flip_horizontal: bool
    flip_vertical: bool
    clips: int  # K of a training video; 0 = frame-wise: the whole video
    seed: int  # of the K clips
    latent_shape: tuple[int, int, int, int]  # of a clip of `frames` frames
    variance: bool  # whether latents have one
    dtype: str  # as stored
    videos_per_shard: int

    @property
    def flips(self) -> list[Flip]:
        """Every flip that training may draw, in the order of the records."""
        options = [[False, True] if allowed else [False] for allowed in (self.flip_vertical, self.flip_horizontal)]
        return [(horizontal, vertical) for vertical, horizontal in itertools.product(*options)]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the moments."""
        return ('mean', 'log_variance') if self.variance else ('mean',)

    def records_per_video(self, split: str) -> int:
        """How many records there are of each video of a split."""
        return 1 if split == VALIDATION else len(self.flips) * max(1, self.clips)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a finished dataset tells of itself.

    Attributes:
      settings: of the records.
      fingerprint: of the tokenizer with its statistics.
      source: name of the dataset of videos.
      path: where those lie.
    """

    settings: LatentSettings
    fingerprint: str
    source: str
    path: str


def describe(data: DataConfig) -> Description | None:
    """The latents that `data.source` names; None where it names no dataset of latents.

    Raises:
      ConfigError: they have not all been made yet.
    """
    summary = None if data.source == sources.FOLDER else prepared.read_summary(data.source, data.path)
    if summary is None or prepared.LATENTS not in summary:
        return None
    told = summary[prepared.LATENTS]
    settings = told['settings'] | {'latent_shape': tuple(told['settings']['latent_shape'])}
    return Description(LatentSettings(**settings), told['fingerprint'], told['source'], told['path'])


def source_videos_config(data: DataConfig) -> DataConfig:
    """`data`, where it names latents with the videos that they were made of in their place."""
    described = describe(data)
    if described is None:
        return data
    return dataclasses.replace(data, source=described.source, path=described.path)


def batch_shapes(data: DataConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]] | None:
    """Shape and type of one clip's moments in a batch; None where `data` names no latents."""
    described = describe(data)
    if described is None:
        return None
    settings = described.settings
    shape = settings.latent_shape if settings.clips else (data.frames, *settings.latent_shape[1:])
    return {name: (shape, np.dtype(settings.dtype)) for name in settings.names}


def make_features(settings: LatentSettings) -> tfds.features.FeaturesDict:
    """What TFDS stores of each record."""
    shape = (None, *settings.latent_shape[1:])
    moment = {
        name: tfds.features.Tensor(shape=shape, dtype=np.dtype(settings.dtype), encoding='bytes')
        for name in settings.names
    }
    place = {'start': np.int32, 'interval': np.int32, 'flip_horizontal': np.bool_, 'flip_vertical': np.bool_}
    return tfds.features.FeaturesDict({'video_id': tfds.features.Text(), **place, **moment})


class LatentSource:
    """One split of a dataset of latents, video by video.

    Args:
      data: names the dataset.
      described: its description.
      split: TRAIN or VALIDATION.

    Raises:
      ConfigError: the latents are of other clips than `data` asks for; the message names the field.
    """

    def __init__(self, data: DataConfig, described: Description, split: str):
        self.settings = settings = described.settings
        self._per_video = settings.records_per_video(split)
        _check(data, settings)
        folder = prepared.dataset_folder(data.source, data.path)
        builder = tfds.builder_from_directory(folder)
        self._records = builder.as_data_source(split)
        self.lengths = prepared.read_lengths(folder, builder.info, split)[:: self._per_video]  # T of each video
        needed = settings.latent_shape[0] if settings.clips else data.frames
        if len(short := np.flatnonzero(self.lengths < needed)):
            raise ConfigError(f'{len(short)} {split} videos of {data.source} have fewer than {needed} latent frames')

    def __len__(self) -> int:
        return len(self.lengths)

    def read_frames(self, index: int, flip: Flip, frames: Sequence[int]) -> Moments:
        """The frames with these numbers of a whole video."""
        record = self._records[self._per_video * int(index) + self.settings.flips.index(flip)]
        return {name: record[name][np.asarray(frames)] for name in self.settings.names}

    def clip(self, index: int, flip: Flip, number: int) -> tuple[Moments, int]:
        """Clip number 0..K-1 of a video, and its interval."""
        first = self._per_video * int(index) + self.settings.flips.index(flip) * self.settings.clips
        record = self._records[first + int(number)]
        return {name: record[name] for name in self.settings.names}, int(record['interval'])

    def validation_clip(self, index: int, frames: int) -> Moments:
        """The first frames of a validation video; `frames` counts for frame-wise tokenizers only."""
        record = self._records[int(index)]
        return {name: record[name] if self.settings.clips else record[name][:frames] for name in self.settings.names}


def open_latents(data: DataConfig, split: str) -> LatentSource | None:
    """A split of the latents that `data.source` names; None where it names videos. Raises as LatentSource."""
    described = describe(data)
    return None if described is None else LatentSource(data, described, split)


def _check(data: DataConfig, settings: LatentSettings) -> None:
    fixed = ['height', 'width', 'train_split', 'eval_split']
    if settings.clips:
        fixed += ['frames', 'context_frames', 'max_interval']
    for name in fixed:
        stored, wanted = getattr(settings, name), getattr(data, name)
        if stored != wanted:
            raise ConfigError(f'{data.source} holds latents of data.{name} = {stored!r}, not {wanted!r}')
    for name in ('flip_horizontal', 'flip_vertical'):
        if getattr(data, name) and not getattr(settings, name):
            raise ConfigError(f'{data.source} holds no latents of flipped videos: set data.{name} to False')


def to_summary(settings: LatentSettings, provenance: dict[str, Any]) -> dict[str, Any]:
    """What preparation.json tells of latents, for `describe`."""
    return {prepared.LATENTS: {'settings': json.loads(json.dumps(dataclasses.asdict(settings))), **provenance}}
