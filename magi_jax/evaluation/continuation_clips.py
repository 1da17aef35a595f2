"""The real clips that `continuation` continues, from any data source.

Dimension key: B clips, T frames, H rows, W columns.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import latents, sources
from magi_jax.data.transforms import clip_indices
from magi_jax.evaluation.protocols import FrameComparison, check_length
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.pixels import to_uint8

CONTEXT = 5  # default number of context frames


@dataclasses.dataclass(frozen=True)
class RealContinuations:
    """Real clips of one split. `len` gives their number.

    Attributes:
      source: source of videos, as in `data.sources`.
      protocol: protocol without None.
      split: split of the clips.
      places: video and first frame of each clip.
      notes: sentences that qualify the results.
    """

    source: Any
    protocol: FrameComparison
    split: str
    places: Sequence[tuple[int, int]]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the clips with these numbers, uint8 [B,T,H,W,3]."""
        frames, interval = self.protocol.frames, self.protocol.interval
        places = [self.places[number] for number in numbers]
        return np.stack([self.source[video].read(clip_indices(start, frames, interval)) for video, start in places])


class DecodedLatents:
    """Videos decoded from stored validation latents, for runs whose videos are no longer available."""

    def __init__(self, data: DataConfig, described: latents.Description, tokenizer: Tokenizer):
        self._latents = latents.LatentSource(data, described, latents.VALIDATION)
        self._tokenizer = tokenizer
        clips = described.settings.clips  # latents of a temporal tokenizer belong to a whole clip
        self.lengths = np.full(len(self._latents), data.frames) if clips else np.asarray(self._latents.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> sources.Video:
        def read(indices: Sequence[int]) -> np.ndarray:
            if self._tokenizer.frame_wise:
                moments = self._latents.read_frames(index, (False, False), indices)
                return _decode(self._tokenizer, moments['mean'][None])[0]
            moments = self._latents.validation_clip(index, int(self.lengths[index]))
            return _decode(self._tokenizer, moments['mean'][None])[0][np.asarray(indices)]

        return sources.Video(str(index), int(self.lengths[index]), read, {})


def open_clips(data: DataConfig, protocol: FrameComparison, tokenizer: Tokenizer) -> RealContinuations:
    """Choose the clips of a protocol from the test split, else `data.eval_split`, else `data.train_split`.

    The first clip of every video comes before the second clip of any video, and clips of a video do not overlap. If the
    split has fewer clips than requested, all are taken and a note says so.

    Args:
      data: data config of the run.
      protocol: protocol, whose frames and context may be None.
      tokenizer: tokenizer of the run.

    Raises:
      ConfigError: no split has a video that is long enough, or the protocol leaves nothing to generate.
    """
    protocol = _completed(data, protocol, tokenizer)
    span = (protocol.frames - 1) * protocol.interval + 1
    source, split, notes = _open_source(data, span, tokenizer)
    places = _places(np.asarray(source.lengths), span, protocol.clips)
    if len(places) < protocol.clips:
        videos = len({video for video, _ in places})
        notes.append(
            f'{protocol.clips} clips requested, but the split has {len(places)} (of {span} raw frames, no overlap) in '
            f'{videos} video{"s" if videos > 1 else ""}: all were used.'
        )
    return RealContinuations(source, protocol, split, places, tuple(notes))


def _completed(data: DataConfig, protocol: FrameComparison, tokenizer: Tokenizer) -> FrameComparison:
    """Replace None in a protocol by values that suit the run."""
    frames = protocol.frames or data.frames
    context = protocol.context or data.context_frames
    if not context:
        fitting = range(1, max(1, min(CONTEXT, frames // 2)) + 1)
        context = max(c for c in fitting if tokenizer.video_frames(tokenizer.latent_frames(c)) == c)
    check_length(context, frames)
    return dataclasses.replace(protocol, frames=frames, context=context)


def _open_source(data: DataConfig, span: int, tokenizer: Tokenizer) -> tuple[Any, str, list[str]]:
    """Return a source that has a video of at least `span` frames, its split, and notes about it."""
    videos, reasons = latents.source_videos_config(data), []
    for split in dict.fromkeys(('test', data.eval_split, data.train_split)):
        try:
            source = sources.open_source(videos, split)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        if max(source.lengths) >= span:
            note = f'The clips come from {split!r}, the training split: no other split has clips of this length.'
            return source, split, [note] if split == data.train_split else []
        reasons.append(f'no video of split {split!r} has {span} raw frames')
    reason = '; '.join(dict.fromkeys(reasons))
    if (described := latents.describe(data)) is not None:
        decoded = DecodedLatents(data, described, tokenizer)
        if max(decoded.lengths) >= span:
            note = f'Real frames are decoded from stored latents, because the videos cannot be read: {reason}.'
            return decoded, data.eval_split, [note]
    raise ConfigError(f'no real clips to continue: {reason}')


def _places(lengths: np.ndarray, span: int, count: int) -> list[tuple[int, int]]:
    """Return video and first frame of up to `count` clips."""
    rounds = range(int(max(lengths)) // span)
    places = ((video, i * span) for i in rounds for video in range(len(lengths)) if (i + 1) * span <= lengths[video])
    return [place for place, _ in zip(places, range(count))]


@jax.jit
def _decode(tokenizer: Tokenizer, mean: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.normalize(mean)))
