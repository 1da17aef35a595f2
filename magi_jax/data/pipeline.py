"""Batches as a function of (seed, step): the same on any number of hosts and threads, and after a restart.

B clips (B_local of them on this host), T frames, H rows, W columns, O object slots.
"""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import sources, transforms

Batch = dict[str, np.ndarray]


def train_batches(
    config: DataConfig, seed: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Endless training batches from `start_step` on.

    Position p of the endless stream is a video (each epoch a new permutation) and a clip of it drawn from (seed, p);
    step s takes positions s*B..(s+1)*B-1, process i the i-th contiguous part of them.

    Args:
      config: where the videos are, the clip and the global batch size B.
      seed: in [0, 2**32).
      start_step: batches already consumed by the run that is resumed.
      process_index: this host, jax.process_index().
      process_count: all hosts, jax.process_count(); before jax.distributed.initialize every host believes to be alone.

    Returns:
      A Grain iterator (call `.close()` when done) of dicts: video uint8 [B_local,T,H,W,3], interval int32 [B_local],
      example int32 [B_local], the position p, unique over the whole run.

    Raises:
      ConfigError: as `sources.open_source`; or the batch cannot be divided among the processes.
    """
    if config.batch_size % process_count:
        raise ConfigError(f'data.batch_size = {config.batch_size} is not a multiple of the {process_count} processes')
    source = sources.open_source(config, config.train_split)

    def clip(position: int, index: int) -> Batch:
        return _train_clip(config, source[index], seed, position)

    positions = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    # drop_remainder: the other rule rounds the endless length up, beyond what an index can hold.
    batches = positions.map_with_index(clip).batch(config.batch_size // process_count, drop_remainder=True)
    mine = batches[process_index::process_count][start_step:]
    # The buffer counts whole batches, and more threads than that would idle.
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(4, config.threads))
    return iter(mine.to_iter_dataset(options))


def eval_batches(
    config: DataConfig, split: str, frames: int, count: int, batch: int, interval: int = 1
) -> Iterator[Batch]:
    """The first `count` videos of a split in order, or all of them if there are fewer; each clip starts at frame 0.

    Args:
      config: as for training; its `frames`, `batch_size` and flips are not used.
      split: as in `sources.open_source`.
      frames: T.
      count: clips in all.
      batch: B of every batch but the last, which holds what remains.
      interval: distance between neighbouring frames.

    Returns:
      Dicts: video uint8 [B,T,H,W,3], interval int32 [B], example int32 [B] (number in the split), and each label that
      the source has; for bouncing_objects: centres float32 [B,T,O,2], count [B], labels, colours [B,O], sizes [B,O,2].

    Raises:
      ConfigError: as `sources.open_source`; also when a TFDS video is too short for these frames and interval.
    """
    # Opened here, not in the generator: a mistake shows when the function is called.
    source = sources.open_source(dataclasses.replace(config, frames=(frames - 1) * interval + 1), split)
    indices = interval * np.arange(frames)

    def clip(number: int) -> Batch:
        video = source[number]
        labels = {key: value[indices] if key == 'centres' else value for key, value in video.labels.items()}
        return labels | _clip(video.read(indices), interval, number)

    total = min(count, len(source))
    return (_stack([clip(n) for n in range(i, min(i + batch, total))]) for i in range(0, total, batch))


def _train_clip(config: DataConfig, video: sources.Video, seed: int, position: int) -> Batch:
    rng = np.random.default_rng([seed, position])
    indices, interval = transforms.draw_clip(rng, video.num_frames, config.frames, config.max_interval)
    horizontal, vertical = rng.random(2) < 0.5
    frames = transforms.flip(
        video.read(indices), config.flip_horizontal and horizontal, config.flip_vertical and vertical
    )
    return _clip(frames, interval, position)


def _clip(frames: np.ndarray, interval: int, example: int) -> Batch:
    return {'video': frames, 'interval': np.int32(interval), 'example': np.int32(example)}


def _stack(clips: list[Batch]) -> Batch:
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0]}
