"""Text states of the captions of a dataset, which launch.encode_text computes once.

They lie beside the videos, in `<dataset folder>/text/<encoder>/1.0.0/`, with the files of a prepared dataset (see
prepared.py). A record holds the states of one caption without padding. Texts belong to the id of a video, whatever its
split. A dataset of latents uses the texts in its own folder, if a user copied them there, or else those of the videos
that it was made from.

    text-<split>.array_record-*-of-*      the records
    video_ids.json                        the ids of each split, in the order of the records
    text_encoder.json                     description of the encoder

Dimension key: S states of a text, E width.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig, TextConfig
from magi_jax.data import latents, prepared, sources
from magi_jax.text_encoders.api import (
    EncoderDescription,
    describe,
    parse_description,
    require_same_encoder,
    short_name,
)
from magi_jax.text_encoders.states import STORED_DTYPE
from magi_jax.text_encoders.words import WordEncoder

ENCODER, VIDEO_IDS = 'encoder', 'video_ids.json'  # key of the description in plan and summary; file name


def location(data: DataConfig, encoder: str) -> tuple[str, str]:
    """Return name and folder of the dataset of texts, as `prepared.dataset_folder` takes them.

    Raises:
      ConfigError: the dataset of videos does not exist.
    """
    name, videos = f'text/{short_name(encoder)}', latents.source_videos_config(data)
    if videos != data:
        own = prepared.dataset_folder(data.source, data.path)
        if prepared.dataset_folder(name, str(own)).is_dir():
            return name, str(own)
    return name, str(sources.dataset_folder(videos))


def make_features(width: int) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a record; `width` is E."""
    states = tfds.features.Tensor(shape=(None, width), dtype=STORED_DTYPE, encoding='bytes')
    return tfds.features.FeaturesDict(
        {'video_id': tfds.features.Text(), 'caption': tfds.features.Text(), 'states': states}
    )


def batch_shapes(text: TextConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of one clip's text in a batch, or {} if `text` names no encoder."""
    if not text.encoder:
        return {}
    return {
        'text': ((text.length, text.width), np.dtype(np.float32)),
        'text_mask': ((text.length,), np.dtype(bool)),
    }


def describe_encoder(data: DataConfig, text: TextConfig) -> EncoderDescription:
    """Return the description of the encoder of the stored texts. Raise the errors of `open_texts`."""
    return parse_description(_read_summary(data, text)[ENCODER])


class TextSource:
    """The texts of a dataset by the ids of its videos. Threads may share it.

    Args:
      folder: folder of the records.
      length: S.
    """

    def __init__(self, folder: pathlib.Path, length: int):
        self._folder, self._length = folder, length
        builder = tfds.builder_from_directory(folder)
        ids = json.loads((folder / VIDEO_IDS).read_text())
        self._records = {split: builder.as_data_source(split) for split in ids}
        self._places = {name: (split, row) for split, names in ids.items() for row, name in enumerate(names)}

    def read(self, video_id: str) -> dict[str, np.ndarray]:
        """Return the text of a video: text float32 [S,E], zero where there is no word, and text_mask bool [S].

        Raises:
          ConfigError: the video has no text.
        """
        if video_id not in self._places:
            raise ConfigError(
                f'{self._folder} has no text of video {video_id}: run launch.encode_text again with --replace'
            )
        split, row = self._places[video_id]
        states = np.asarray(self._records[split][row]['states'], np.float32)
        padding = self._length - len(states)
        return {'text': np.pad(states, [(0, padding), (0, 0)]), 'text_mask': np.arange(self._length) < len(states)}


def open_texts(data: DataConfig, text: TextConfig) -> TextSource | None:
    """Open the texts of a dataset. Return None if `text` names no encoder.

    Raises:
      ConfigError: the texts are not encoded, not completely, or by another encoder, length or width.
    """
    if not text.encoder:
        return None
    _read_summary(data, text)
    return TextSource(prepared.dataset_folder(*location(data, text.encoder)), text.length)


def _read_summary(data: DataConfig, text: TextConfig) -> dict[str, Any]:
    """Read the summary of the texts, and compare its encoder with the config as far as that does not open a model."""
    summary = prepared.read_summary(*location(data, text.encoder))
    if summary is None:
        path = f' --data_path {data.path}' if data.path else ''
        raise ConfigError(
            f'the captions of {data.source} are not encoded by {text.encoder}: run launch.encode_text --dataset '
            f'{data.source}{path} --encoder {text.encoder} --length {text.length} --width {text.width}'
        )
    stored = parse_description(summary[ENCODER])
    settings = {'name': text.encoder, 'length': text.length, 'width': text.width}
    is_words = text.encoder == WordEncoder.name
    found = describe(WordEncoder(text.length, text.width)) if is_words else dataclasses.replace(stored, **settings)
    require_same_encoder(stored, found, f'the text of {data.source}')
    return summary
