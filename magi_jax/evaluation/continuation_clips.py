"""The real clips that `continuation` continues, of any data source.

B clips, T frames, H rows, W columns.
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

CONTEXT = 5  # frames that are given unless the protocol says otherwise


@dataclasses.dataclass(frozen=True)
class RealContinuations:
    """Real clips of one split; `len` is their number.

    Attributes:
      source: of videos, as in `data.sources`.
      protocol: without None.
      split: where the clips come from.
      places: video and first frame of each clip.
      notes: what a reader of the numbers must know, in sentences.
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
    """Stored validation latents, decoded on reading: in place of videos that are no longer there."""

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
    """Choose the clips of a protocol: of the test split, else of `data.eval_split`, else of `data.train_split`.

    The first clip of every video comes before the second one of any; clips of a video do not overlap. Where the split
    holds fewer clips than the protocol asks for, all are taken and a note says so.

    Args:
      data: of the run.
      protocol: its frames and context may be None.
      tokenizer: of the run.

    Raises:
      ConfigError: no split holds a video that is long enough; or the protocol leaves nothing to generate.
    """
    protocol = _completed(data, protocol, tokenizer)
    span = (protocol.frames - 1) * protocol.interval + 1
    source, split, notes = _open_source(data, span, tokenizer)
    places = _places(np.asarray(source.lengths), span, protocol.clips)
    if len(places) < protocol.clips:
        videos = len({video for video, _ in places})
        notes.append(
            f'{protocol.clips} clips requested; the split holds {len(places)} (of {span} raw frames, no overlap) in '
            f'{videos} video{"s" if videos > 1 else ""}: all were used.'
        )
    return RealContinuations(source, protocol, split, places, tuple(notes))


def _completed(data: DataConfig, protocol: FrameComparison, tokenizer: Tokenizer) -> FrameComparison:
    """Replace None by what suits the run."""
    frames = protocol.frames or data.frames
    context = protocol.context or data.context_frames
    if not context:
        fitting = range(1, max(1, min(CONTEXT, frames // 2)) + 1)
        context = max(c for c in fitting if tokenizer.video_frames(tokenizer.latent_frames(c)) == c)
    check_length(context, frames)
    return dataclasses.replace(protocol, frames=frames, context=context)


def _open_source(data: DataConfig, span: int, tokenizer: Tokenizer) -> tuple[Any, str, list[str]]:
    """Return a source with videos of at least `span` frames, its split, and what is to be noted of it."""
    videos, complaints = latents.source_videos_config(data), []
    for split in dict.fromkeys(('test', data.eval_split, data.train_split)):
        try:
            source = sources.open_source(videos, split)
        except ConfigError as error:
            complaints.append(str(error))
            continue
        if max(source.lengths) >= span:
            seen = f'The clips are of the split {split!r}, which the run was trained on: no other holds such clips.'
            return source, split, [seen] if split == data.train_split else []
        complaints.append(f'no video of split {split!r} has the {span} raw frames of a clip')
    reasons = '; '.join(dict.fromkeys(complaints))
    if (described := latents.describe(data)) is not None:
        decoded = DecodedLatents(data, described, tokenizer)
        if max(decoded.lengths) >= span:
            note = f'Real frames are decoded from the stored latents, since their videos cannot be read: {reasons}.'
            return decoded, data.eval_split, [note]
    raise ConfigError(f'no real clips to continue: {reasons}')


def _places(lengths: np.ndarray, span: int, count: int) -> list[tuple[int, int]]:
    """Video and first frame of up to `count` clips."""
    rounds = range(int(max(lengths)) // span)
    places = ((video, i * span) for i in rounds for video in range(len(lengths)) if (i + 1) * span <= lengths[video])
    return [place for place, _ in zip(places, range(count))]


@jax.jit
def _decode(tokenizer: Tokenizer, mean: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.normalize(mean)))
