"""Batches as a function of (seed, step). They do not depend on the number of hosts and threads, nor on restarts.

Dimension key: B clips (B_local on this host), T frames, H rows, W columns, O object slots.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from magi_jax.config import ConfigError, DataConfig, TextConfig
from magi_jax.data import latents, sources, texts, transforms

Batch = dict[str, np.ndarray]
MAX_STEPS = 2**40  # more steps than any run has
NO_TEXT = TextConfig()


def train_batches(
    config: DataConfig,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    text: TextConfig = NO_TEXT,
) -> Iterator[Batch]:
    """Return endless training batches, starting at `start_step`.

    Position p of the endless stream selects a video and a clip. Each epoch is a new permutation of the videos, and
    (seed, p) draws the clip. Row r of step s is position s*B + r, whichever host reads it.

    Args:
      config: config of the videos, the clips and the global batch size B.
      seed: in [0, 2**32).
      start_step: number of batches that a resumed run has already consumed.
      rows: rows of the global batch that this host reads, from `parallel.hosts.host_rows`. None: all rows.
      text: encoder of the captions, if the batches hold them.

    Returns:
      A Grain iterator of dicts; call `.close()` when done. Keys: video uint8 [B_local,T,H,W,3], interval int32
      [B_local], and example int32 [B_local], the position p, which is unique over the whole run. If `config` names
      latents, their moments mean and log_variance replace video; videos stored completely are cut to the same clips.
      If `text` names an encoder: text float32 [B_local,S,E] and text_mask bool [B_local,S], as in `TextSource.read`.

    Raises:
      ConfigError: as in `sources.open_source`, `latents.open_latents` and `texts.open_texts`, or `config` flips videos
        that have a text.
    """
    if text.encoder and (config.flip_horizontal or config.flip_vertical):
        flips = f'data.flip_horizontal = {config.flip_horizontal}, data.flip_vertical = {config.flip_vertical}'
        raise ConfigError(f'{flips}, but captions do not describe flipped videos: set both to False')
    source, captions = _open_training(config), texts.open_texts(config, text)
    clip = _latent_clip if isinstance(source, latents.LatentSource) else _train_clip
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = range(config.batch_size) if rows is None else rows

    def batch(step: int) -> Batch:
        positions = [int(step) * config.batch_size + int(row) for row in rows]
        return _stack([_replace_id(clip(config, source, order[p], seed, p), captions) for p in positions])

    # The buffer counts whole batches. With a smaller buffer, some threads would be idle.
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(4, config.threads))
    return iter(grain.MapDataset.range(start_step, MAX_STEPS).map(batch).to_iter_dataset(options))


def _open_training(config: DataConfig) -> sources.Source | latents.LatentSource:
    source = latents.open_latents(config, latents.TRAIN)
    return sources.open_source(config, config.train_split) if source is None else source


def check_clips(config: DataConfig, text: TextConfig = NO_TEXT) -> None:
    """Open the clips of training and validation, to raise the errors of `train_batches`."""
    _open_training(config)
    validation_clips(config, text)


class EvalClips:
    """The videos of a split in order, as clips that start at frame 0. Latents are replaced by their source videos.

    Args:
      config: config as for training. Its `frames`, `batch_size` and flips are not used.
      split: name of the split, as in `sources.open_source`.
      frames: T.
      interval: frame interval, in raw frames.
      text: encoder of the captions, if the batches hold them.

    Raises:
      ConfigError: as in `sources.open_source` and `texts.open_texts`, or a TFDS video is too short for these frames and
        interval.
    """

    def __init__(self, config: DataConfig, split: str, frames: int, interval: int = 1, text: TextConfig = NO_TEXT):
        config = dataclasses.replace(latents.source_videos_config(config), frames=(frames - 1) * interval + 1)
        self._source, self._captions = sources.open_source(config, split), texts.open_texts(config, text)
        self._interval, self._indices = interval, transforms.clip_indices(0, frames, interval)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, numbers: Sequence[int]) -> Batch:
        """Return the clips with the given numbers in the split, as a batch.

        Returns:
          A dict: video uint8 [B,T,H,W,3], interval int32 [B], example int32 [B] (the numbers), and the labels of the
          source. Labels of bouncing_objects: centres float32 [B,T,O,2], count [B], labels and colours [B,O], sizes
          [B,O,2], and of its captioned videos caption str [B] and direction [B]. With an encoder also text and
          text_mask, as in `train_batches`.
        """
        return _stack([self._clip(int(number)) for number in numbers])

    def _clip(self, number: int) -> Batch:
        video = self._source[number]
        labels = {key: value[self._indices] if key == 'centres' else value for key, value in video.labels.items()}
        content = {'video': video.read(self._indices), 'video_id': video.video_id}
        return labels | _clip(_replace_id(content, self._captions), self._interval, number)


class ValidationLatents:
    """The moments of each validation clip at frame interval 1, with the interface of EvalClips."""

    def __init__(self, config: DataConfig, source: latents.LatentSource, text: TextConfig = NO_TEXT):
        self._source, self._frames, self._captions = source, config.frames, texts.open_texts(config, text)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, numbers: Sequence[int]) -> Batch:
        """Return the clips with the given numbers, as a batch.

        The batch holds mean and perhaps log_variance [B,T,h,w,c], and interval and example int32 [B]. With an encoder
        also text and text_mask, as in `train_batches`.
        """
        return _stack([self._clip(int(number)) for number in numbers])

    def _clip(self, number: int) -> Batch:
        return _clip(_replace_id(self._source.validation_clip(number, self._frames), self._captions), 1, number)


def validation_clips(config: DataConfig, text: TextConfig = NO_TEXT) -> EvalClips | ValidationLatents:
    """Return the validation clips that `config` names, videos or latents. Raise the errors of `train_batches`."""
    source = latents.open_latents(config, latents.VALIDATION)
    if source is not None:
        return ValidationLatents(config, source, text)
    return EvalClips(config, sources.eval_split(config), config.frames, text=text)


def eval_batches(
    config: DataConfig, split: str, frames: int, count: int, batch: int, interval: int = 1
) -> Iterator[Batch]:
    """Return the first `count` clips of a split in batches of `batch` clips. The last batch may be smaller.

    Arguments, batches and errors are those of `EvalClips`. A split with fewer than `count` videos is returned
    completely.
    """
    # Opened here, not in the generator, so that errors are raised when the function is called.
    clips = EvalClips(config, split, frames, interval)
    total = min(count, len(clips))
    return (clips.read(range(i, min(i + batch, total))) for i in range(0, total, batch))


def _train_clip(config: DataConfig, videos: sources.Source, index: int, seed: int, position: int) -> Batch:
    rng, video = np.random.default_rng([seed, position]), videos[index]
    indices, interval = transforms.draw_clip(rng, video.num_frames, config.frames, config.max_interval)
    flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
    content = {'video': transforms.flip(video.read(indices), *flip), 'video_id': video.video_id}
    return _clip(content, interval, position)


def _latent_clip(config: DataConfig, videos: latents.LatentSource, index: int, seed: int, position: int) -> Batch:
    """Read the moments of a training clip. Videos stored completely are cut exactly as in `_train_clip`."""
    rng = np.random.default_rng([seed, position])
    if videos.settings.clips:
        number = rng.integers(videos.settings.clips)
        flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
        return _clip(*videos.clip(index, flip, number), position)
    indices, interval = transforms.draw_clip(rng, videos.lengths[index], config.frames, config.max_interval)
    flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
    return _clip(videos.read_frames(index, flip, indices), interval, position)


def _replace_id(content: dict[str, Any], captions: texts.TextSource | None) -> Batch:
    """Return the content of a clip with the text of its video, if there are texts, in place of video_id."""
    arrays = {name: value for name, value in content.items() if name != 'video_id'}
    return arrays | (captions.read(content['video_id']) if captions else {})


def _clip(content: Batch, interval: int, example: int) -> Batch:
    return content | {'interval': np.int32(interval), 'example': np.int32(example)}


def _stack(clips: list[Batch]) -> Batch:
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0]}
