"""The real clips of a protocol. Which clips, in which order, depends only on protocol and dataset.

Dimension key: B clips, N clips of a set, T frames, H rows, W columns.
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

SEED = 2025  # seed of the choice of clips; fixed for all protocols
EMBEDDED_FRAMES = 96  # length of embedded videos, or that of a clip if it is longer

# Clips to compare with; other clips of that split, for the floor (real-vs-real baseline); clips of the training split.
Set = Literal['reference', 'others', 'training']
SETS: tuple[Set, ...] = ('reference', 'others', 'training')


@dataclasses.dataclass(frozen=True)
class EmbeddedVideos:
    """`bouncing_objects` beyond its built dataset: any number of videos per split, generated when read."""

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
      data: data config of the run to measure.
      protocol: protocol that defines the clips.

    Raises:
      ConfigError: as in `sources.open_source`, or no video is long enough.
    """

    def __init__(self, data: DataConfig, protocol: Distances):
        self.protocol = protocol
        splits = {'reference': protocol.split, 'others': protocol.split, 'training': data.train_split}
        opened = {split: _open(data, split, protocol) for split in sorted(set(splits.values()))}
        self._sources: dict[Set, Any] = {name: opened[split] for name, split in splits.items()}
        self._chosen = {name: self._choose(name) for name in splits}

    @property
    def repeats(self) -> bool:
        """Whether the split has too few videos for two sets, so that some videos give several clips."""
        return len(set(self._chosen['reference'][0]) | set(self._chosen['others'][0])) < 2 * self.protocol.clips

    def read(self, name: Set, numbers: np.ndarray) -> np.ndarray:
        """Read clips of a set by their numbers in it, uint8 [B,T,H,W,3]."""
        videos, starts = self._chosen[name]
        protocol, source = self.protocol, self._sources[name]
        return np.stack(
            [
                source[videos[i]].read(clip_indices(starts[i], protocol.frames, protocol.interval))
                for i in np.asarray(numbers)
            ]
        )

    def batches(self, name: Set, size: int) -> Iterator[np.ndarray]:
        """Yield a complete set in order, in batches uint8 [B,T,H,W,3]."""
        for start in range(0, self.protocol.clips, size):
            yield self.read(name, np.arange(start, min(start + size, self.protocol.clips)))

    def digest(self) -> str:
        """Return a text that distinguishes sets of different datasets in caches."""
        return '-'.join(f'{len(source.lengths)}x{int(np.sum(source.lengths))}' for source in self._sources.values())

    def _choose(self, name: Set) -> tuple[np.ndarray, np.ndarray]:
        """Choose video and first frame of each clip, int [N].

        Every video is used once, in random order, before any is used again.
        """
        protocol, lengths = self.protocol, np.asarray(self._sources[name].lengths)
        span = (protocol.frames - 1) * protocol.interval + 1
        usable = np.flatnonzero(lengths >= span)
        if not len(usable):
            raise ConfigError(f'no video has {span} frames, the length of a clip: use fewer --frames or longer videos')
        order = np.random.default_rng(SEED).permutation(usable)
        first = protocol.clips if name == 'others' else 0
        videos = order[np.arange(first, first + protocol.clips) % len(order)]
        rng = np.random.default_rng([SEED, first])
        starts = rng.integers(lengths[videos] - span + 1) if protocol.start == 'any' else np.zeros_like(videos)
        return videos, starts


def _open(data: DataConfig, split: str, protocol: Distances) -> Any:
    dataset, _, kind = data.source.partition('/')
    if dataset != bouncing.BouncingObjects.name or kind not in bouncing.KINDS:
        # Shorter videos are skipped without an error, as in published protocols.
        return sources.open_source(dataclasses.replace(data, frames=1), split)
    # Training clips must come from the built dataset, because the run was trained on no others.
    count = bouncing.COUNTS[split] if split == data.train_split else 2 * protocol.clips
    length = max(EMBEDDED_FRAMES, (protocol.frames - 1) * protocol.interval + 1)
    return EmbeddedVideos(kind, split, np.full(count, length))
