"""The real clips of a protocol: which ones, in which order, is a function of the protocol and the dataset alone.

B clips, N clips of a set, T frames, H rows, W columns.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import sources
from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.data.transforms import clip_indices
from magi_jax.evaluation.protocols import Distances

SEED = 2025  # of which clips are taken; part of every protocol, no option
EMBEDDED_FRAMES = 96  # of an embedded video that clips are cut from, or as many as a clip has

# The clips that are compared with; as many others of the same split, for the floor; some that the model was trained on.
Set = Literal['reference', 'others', 'training']
SETS: tuple[Set, ...] = ('reference', 'others', 'training')


@dataclasses.dataclass(frozen=True)
class EmbeddedVideos:
    """`bouncing_objects` beyond its built dataset: any number of videos a split, each drawn when it is read."""

    kind: str
    split: str
    lengths: np.ndarray  # int64 [number of videos]

    def __getitem__(self, index: int) -> sources.Video:
        length = int(self.lengths[index])

        def read(indices: Any) -> np.ndarray:
            return bouncing.make_video(self.kind, self.split, index, int(max(indices)) + 1)['frames'][indices]

        return sources.Video(f'{self.kind}/{self.split}/{index}', length, read, {})


class RealClips:
    """Reads the sets of a protocol.

    Args:
      data: of the run that is measured.
      protocol: which clips.

    Raises:
      ConfigError: as `sources.open_source`; or no video is long enough.
    """

    def __init__(self, data: DataConfig, protocol: Distances):
        self.protocol = protocol
        splits = {'reference': protocol.split, 'others': protocol.split, 'training': data.train_split}
        opened = {split: _open(data, split, protocol) for split in sorted(set(splits.values()))}
        self._sources: dict[Set, Any] = {name: opened[split] for name, split in splits.items()}
        self._chosen = {name: self._choose(name) for name in splits}

    @property
    def repeats(self) -> bool:
        """Whether the split has too few videos for two sets, so that videos give several clips."""
        return len(set(self._chosen['reference'][0]) | set(self._chosen['others'][0])) < 2 * self.protocol.clips

    def read(self, name: Set, numbers: np.ndarray) -> np.ndarray:
        """Clips of a set by their numbers in it, uint8 [B,T,H,W,3]."""
        videos, starts = self._chosen[name]
        protocol, source = self.protocol, self._sources[name]
        return np.stack(
            [
                source[videos[i]].read(clip_indices(starts[i], protocol.frames, protocol.interval))
                for i in np.asarray(numbers)
            ]
        )

    def batches(self, name: Set, size: int) -> Iterator[np.ndarray]:
        """The whole set in order, uint8 [B,T,H,W,3] at a time."""
        for start in range(0, self.protocol.clips, size):
            yield self.read(name, np.arange(start, min(start + size, self.protocol.clips)))

    def digest(self) -> str:
        """What tells apart sets of other datasets, for caches."""
        return '-'.join(f'{len(source.lengths)}x{int(np.sum(source.lengths))}' for source in self._sources.values())

    def _choose(self, name: Set) -> tuple[np.ndarray, np.ndarray]:
        """Video and first frame of each clip, int [N]: all videos once, in random order, before one comes again."""
        protocol, lengths = self.protocol, np.asarray(self._sources[name].lengths)
        span = (protocol.frames - 1) * protocol.interval + 1
        usable = np.flatnonzero(lengths >= span)
        if not len(usable):
            raise ConfigError(f'no video has the {span} frames of a clip of this protocol')
        order = np.random.default_rng(SEED).permutation(usable)
        first = protocol.clips if name == 'others' else 0
        videos = order[np.arange(first, first + protocol.clips) % len(order)]
        rng = np.random.default_rng([SEED, first])
        starts = rng.integers(lengths[videos] - span + 1) if protocol.start == 'any' else np.zeros_like(videos)
        return videos, starts


def _open(data: DataConfig, split: str, protocol: Distances) -> Any:
    dataset, _, kind = data.source.partition('/')
    if dataset != bouncing.BouncingObjects.name:
        # Shorter videos are left out, not refused: published protocols do so.
        return sources.open_source(dataclasses.replace(data, frames=1), split)
    # A training clip must be one that the run has seen: only the built dataset's videos are.
    count = bouncing.COUNTS[split] if split == data.train_split else 2 * protocol.clips
    length = max(EMBEDDED_FRAMES, (protocol.frames - 1) * protocol.interval + 1)
    return EmbeddedVideos(kind, split, np.full(count, length))
