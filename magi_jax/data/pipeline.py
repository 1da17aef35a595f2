"""Batches as a function of (seed, step): the same on any number of hosts and threads, and after a restart.

B clips (B_local of them on this host), T frames, H rows, W columns, O object slots.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from magi_jax.config import DataConfig
from magi_jax.data import latents, sources, transforms

Batch = dict[str, np.ndarray]
NEVER = 2**40  # a step that no run reaches


def train_batches(
    config: DataConfig, seed: int, start_step: int = 0, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Endless training batches from `start_step` on.

    Position p of the endless stream is a video (each epoch a new permutation) and a clip of it drawn from (seed, p);
    row r of step s is position s*B + r, whichever host reads it.

    Args:
      config: where the videos are, the clip and the global batch size B.
      seed: in [0, 2**32).
      start_step: batches already consumed by the run that is resumed.
      rows: those of the global batch that this host reads, of `parallel.hosts.host_rows`. None: all.

    Returns:
      A Grain iterator (call `.close()` when done) of dicts: video uint8 [B_local,T,H,W,3], interval int32 [B_local],
      example int32 [B_local], the position p, unique over the whole run. Where `config` names latents, their moments
      mean and log_variance stand in the place of video; those of whole videos are cut to the same clips.

    Raises:
      ConfigError: as `sources.open_source` or `latents.open_latents`.
    """
    source = latents.open_latents(config, latents.TRAIN)
    clip = _latent_clip
    if source is None:
        source, clip = sources.open_source(config, config.train_split), _train_clip
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = range(config.batch_size) if rows is None else rows

    def batch(step: int) -> Batch:
        positions = [int(step) * config.batch_size + int(row) for row in rows]
        return _stack([clip(config, source, order[p], seed, p) for p in positions])

    # The buffer counts whole batches, and more threads than that would idle.
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(4, config.threads))
    return iter(grain.MapDataset.range(start_step, NEVER).map(batch).to_iter_dataset(options))


class EvalClips:
    """The videos of a split in order, as clips that start at frame 0; of latents, the videos they were made of.

    Args:
      config: as for training; its `frames`, `batch_size` and flips are not used.
      split: as in `sources.open_source`.
      frames: T.
      interval: distance between neighbouring frames.

    Raises:
      ConfigError: as `sources.open_source`; also when a TFDS video is too short for these frames and interval.
    """

    def __init__(self, config: DataConfig, split: str, frames: int, interval: int = 1):
        config = dataclasses.replace(latents.source_videos_config(config), frames=(frames - 1) * interval + 1)
        self._source = sources.open_source(config, split)
        self._interval, self._indices = interval, transforms.clip_indices(0, frames, interval)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, numbers: Sequence[int]) -> Batch:
        """The clips with these numbers in the split, as a batch.

        Returns:
          A dict: video uint8 [B,T,H,W,3], interval int32 [B], example int32 [B] (the numbers), and each label that the
          source has; for bouncing_objects: centres float32 [B,T,O,2], count [B], labels, colours [B,O], sizes [B,O,2].
        """
        return _stack([self._clip(int(number)) for number in numbers])

    def _clip(self, number: int) -> Batch:
        video = self._source[number]
        labels = {key: value[self._indices] if key == 'centres' else value for key, value in video.labels.items()}
        return labels | _clip({'video': video.read(self._indices)}, self._interval, number)


class ValidationLatents:
    """As EvalClips, of latents: the moments of each validation clip, at interval 1."""

    def __init__(self, config: DataConfig, source: latents.LatentSource):
        self._source, self._frames = source, config.frames

    def __len__(self) -> int:
        return len(self._source)

    def read(self, numbers: Sequence[int]) -> Batch:
        """The clips with these numbers: mean and perhaps log_variance [B,T,h,w,c], interval and example int32 [B]."""
        return _stack([_clip(self._source.validation_clip(n, self._frames), 1, int(n)) for n in numbers])


def validation_clips(config: DataConfig) -> EvalClips | ValidationLatents:
    """The clips of validation, as videos or latents, whichever `config` names. Raises as `train_batches`."""
    source = latents.open_latents(config, latents.VALIDATION)
    if source is not None:
        return ValidationLatents(config, source)
    return EvalClips(config, sources.eval_split(config), config.frames)


def eval_batches(
    config: DataConfig, split: str, frames: int, count: int, batch: int, interval: int = 1
) -> Iterator[Batch]:
    """The first `count` clips of a split in batches of `batch`, the last of which holds what remains.

    Arguments, batches and errors are those of `EvalClips`; of fewer than `count` videos, all.
    """
    # Opened here, not in the generator: a mistake shows when the function is called.
    clips = EvalClips(config, split, frames, interval)
    total = min(count, len(clips))
    return (clips.read(range(i, min(i + batch, total))) for i in range(0, total, batch))


def _train_clip(config: DataConfig, videos: sources.Source, index: int, seed: int, position: int) -> Batch:
    rng, video = np.random.default_rng([seed, position]), videos[index]
    indices, interval = transforms.draw_clip(rng, video.num_frames, config.frames, config.max_interval)
    flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
    return _clip({'video': transforms.flip(video.read(indices), *flip)}, interval, position)


def _latent_clip(config: DataConfig, videos: latents.LatentSource, index: int, seed: int, position: int) -> Batch:
    """Of whole videos, the moments of the very clip that `_train_clip` would cut."""
    rng = np.random.default_rng([seed, position])
    if videos.settings.clips:
        number = rng.integers(videos.settings.clips)
        flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
        return _clip(*videos.clip(index, flip, number), position)
    indices, interval = transforms.draw_clip(rng, videos.lengths[index], config.frames, config.max_interval)
    flip = transforms.draw_flip(rng, config.flip_horizontal, config.flip_vertical)
    return _clip(videos.read_frames(index, flip, indices), interval, position)


def _clip(content: Batch, interval: int, example: int) -> Batch:
    return content | {'interval': np.int32(interval), 'example': np.int32(example)}


def _stack(clips: list[Batch]) -> Batch:
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0]}
