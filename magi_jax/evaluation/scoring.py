"""Distances of generated clips to real ones under a protocol, and the numbers that put them in context.

The floor is the real-vs-real baseline: the same quantity for other real clips in place of generated ones.

Dimension key: N clips of a set, B of a batch, C context frames, T frames, W frames of the window of the network, S time
slots, D width.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from einops import reduce

from magi_jax.evaluation import neighbours, pixels
from magi_jax.evaluation.extractors import Extractor
from magi_jax.evaluation.frechet import Moments, frechet_distance, kernel_distance
from magi_jax.evaluation.protocols import Distances
from magi_jax.evaluation.real_clips import SETS, RealClips, Set

BATCH = 64  # clips generated at once; fixed, because the random numbers of a clip depend on its batch
EXAMPLE_CLIPS = 6

Features = Callable[[np.ndarray], np.ndarray]  # result of `Extractor.on`
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 [B,T,H,W,3] -> the same after a tokenizer
# (context uint8 [B,C,H,W,3], seed) -> uint8 [B,T,H,W,3] with the context
Generate = Callable[[np.ndarray, int], np.ndarray]
# Begins the next stage and wraps its iterator over batches; the second argument is their number.
Progress = Callable[[Iterable[Any], int], Iterator[Any]]
REAL_STAGES = {kind: f'features of real clips ({kind})' for kind in SETS}
SAMPLING_STAGE = 'sampling clips, with their features'
TOKENIZER_STAGE = 'features of real clips after the tokenizer'


def no_progress(batches: Iterable[Any], total: int) -> Iterator[Any]:
    """Return the batches without showing progress."""
    return iter(batches)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A quantity for each set of generated clips, and for real clips in their place."""

    floor: float
    draws: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the sets of generated clips."""
        return float(np.mean(self.draws))

    @property
    def std(self) -> float:
        """Unbiased standard deviation over the sets; 0 for a single one."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return mean, deviation, floor and the values of all sets."""
        return {'mean': self.mean, 'std': self.std, 'floor': self.floor, 'draws': list(self.draws)}


@dataclasses.dataclass(frozen=True)
class Score:
    """All results under a protocol of distances.

    Attributes:
      extractor: network, which determines the name of the distance.
      protocol_name: name in PROTOCOLS.
      protocol: protocol of that name.
      frechet: Fréchet distance.
      kernel: kernel distance, an unbiased estimate that is about 0 for real clips.
      coverage: result of `neighbours.coverage`.
      reconstruction: Fréchet distance of the floor's clips after the tokenizer, a practical bound for the
        generator; None if not measured.
      training: median distance to the nearest of N training clips; values far below the floor indicate memorization.
      curve: distance of each part alone, by the number of the last frame of its window or time slot.
      stills: distance of single frames, repeated as a clip, by frame number; empty if the protocol has none.
      pixels: PSNR and SSIM against the real continuation by generated frame; empty without context.
      notes: sentences that qualify the results.
    """

    extractor: Extractor
    protocol_name: str
    protocol: Distances
    frechet: Spread
    kernel: Spread
    coverage: Spread
    training: Spread
    reconstruction: float | None
    curve: dict[int, Spread]
    stills: dict[int, Spread]
    pixels: dict[str, list[float]]
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """Full name of the distance."""
        return _metric(self.extractor, self.protocol)

    def to_json(self) -> dict[str, Any]:
        """Return all results as JSON types."""
        distances = {name: getattr(self, name).to_json() for name in ('frechet', 'kernel', 'coverage', 'training')}
        return {
            'metric': self.metric,
            'label': self.extractor.label,
            'protocol': self.protocol_name,
            'settings': dataclasses.asdict(self.protocol) | {'covariance': 'n-1'},
            'extractor': {'sha256': self.extractor.sha256, **self.extractor.settings},
            'clips': {'real': self.protocol.clips, 'generated': self.protocol.clips, 'draws': self.protocol.seeds},
            **distances,
            'reconstruction': self.reconstruction,
            'curve': {str(frame): spread.to_json() for frame, spread in self.curve.items()},
            'stills': {str(frame): spread.to_json() for frame, spread in self.stills.items()},
            'pixels': self.pixels,
            'notes': list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Examples:
    """Example clips, uint8 [B,T,H,W,3] each."""

    real: np.ndarray  # clips that gave the context
    generated: np.ndarray
    training: np.ndarray  # of N training clips, the nearest to the generated ones
    context: int


@dataclasses.dataclass(frozen=True)
class _FeatureSet:
    """Features [N,D] of a set: those of clips, and by frame number those of their parts and of still frames."""

    clip: np.ndarray
    parts: dict[int, np.ndarray]
    stills: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A protocol with its network and real clips, ready to measure generators.

    Attributes:
      name: name of the protocol.
      extractor: result of `make_extractor`.
      features: result of `extractor.on(mesh)`.
      real: real clips of the protocol.
      cache: folder that caches features of real clips; None for no cache.
    """

    name: str
    extractor: Extractor
    features: Features
    real: RealClips
    cache: pathlib.Path | None = None

    @property
    def metric(self) -> str:
        """Full name of the distance."""
        return _metric(self.extractor, self.real.protocol)

    def windows(self, video: np.ndarray) -> np.ndarray:
        """Return features [B,windows,S,D] of [B,T,H,W,3].

        They are those of consecutive windows up to the end, then those of each still frame.
        """
        window = self.extractor.window or video.shape[1]
        inputs = [video[:, end - window : end] for end in self.ends()]
        inputs += [np.repeat(video[:, [frame - 1]], window, axis=1) for frame in self.stills()]
        return np.stack([self.features(clips) for clips in inputs], axis=1)

    def ends(self) -> list[int]:
        """Return the number of the last frame of each window."""
        frames = self.real.protocol.frames
        window = self.extractor.window or frames
        return list(range(frames, window - 1, -window))[::-1]

    def stills(self) -> list[int]:
        """Return the number of each frame that is scored as a still."""
        protocol = self.real.protocol
        return list(range(protocol.frames, 0, -protocol.stills))[::-1] if protocol.stills else []

    def real_features(self, kind: Set, progress: Progress = no_progress) -> _FeatureSet:
        """Return the features of a set of real clips, from the cache if possible."""
        identity = [self.extractor.metric, self.extractor.sha256, dataclasses.asdict(self.real.protocol)]
        identity += [self.real.digest(), kind]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        path = self.cache and self.cache / f'{key}.npy'
        if path and path.exists():
            list(progress((), 0))
            return self.split(np.load(path))
        windows = self.features_of(kind, lambda video: video, progress)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f'.{os.getpid()}.npy')
            np.save(unfinished, windows)
            unfinished.replace(path)
        return self.split(windows)

    def features_of(self, kind: Set, change: Reconstruct, progress: Progress) -> np.ndarray:
        """Compute `windows` for a set of real clips after `change` of each batch."""
        batches = progress(self.real.batches(kind, BATCH), -(-self.real.protocol.clips // BATCH))
        return np.concatenate([self.windows(change(video)) for video in batches])

    def split(self, windows: np.ndarray) -> _FeatureSet:
        """Split the `windows` of a set into features of the last window, of all parts, and of stills.

        Parts are the windows, or the time slots if there is only one window.
        """
        count, slots = len(self.ends()), windows.shape[2]
        means = reduce(windows, 'n w s d -> w n d', 'mean')
        stills = dict(zip(self.stills(), means[count:]))
        if count > 1:
            return _FeatureSet(means[count - 1], dict(zip(self.ends(), means[:count])), stills)
        ends = [(i + 1) * self.real.protocol.frames // slots for i in range(slots)] if slots > 1 else []
        return _FeatureSet(means[0], {end: windows[:, 0, i] for i, end in enumerate(ends)}, stills)


def score(
    measure: Measure,
    generate: Generate,
    reconstruct: Reconstruct | None,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[Score, Examples]:
    """Measure a generator.

    Args:
      measure: protocol with its clips and network.
      generate: function that generates up to BATCH clips; every call gets another seed.
      reconstruct: function of the tokenizer; None if the tokenizer does not accept such clips.
      seed: seed of all sets.
      progress: function called for each stage: REAL_STAGES, SAMPLING_STAGE and, with `reconstruct`, TOKENIZER_STAGE.
    """
    real, protocol = measure.real, measure.real.protocol
    sets = {kind: measure.real_features(kind, progress) for kind in SETS}
    jobs = [(draw, start) for draw in range(protocol.seeds) for start in range(0, protocol.clips, BATCH)]
    features: list[list[np.ndarray]] = [[] for _ in range(protocol.seeds)]
    compared, examples = [], None
    for draw, start in progress(jobs, len(jobs)):
        truth = real.read(protocol.context_of, np.arange(start, min(start + BATCH, protocol.clips)))
        video = generate(truth[:, : protocol.context], _batch_seed(seed, draw, start))
        features[draw].append(measure.windows(video))
        if protocol.context:
            compared.append(_compare(video[:, protocol.context :], truth[:, protocol.context :]))
        examples = examples or (truth[:EXAMPLE_CLIPS], video[:EXAMPLE_CLIPS])
    draws = [measure.split(np.concatenate(windows)) for windows in features]
    reconstruction = None
    if reconstruct is not None:
        reconstruction = _frechet(sets['reference'].clip, _reconstructed(measure, reconstruct, progress))
    _, neighbour = neighbours.nearest(draws[0].clip[:EXAMPLE_CLIPS], sets['training'].clip)
    measured = Score(
        measure.extractor,
        measure.name,
        protocol,
        **_distances(sets, draws),
        reconstruction=reconstruction,
        pixels={key: _mean([each[key] for each in compared]) for key in (compared[0] if compared else ())},
        notes=_notes(protocol, real, sets['reference'].clip.shape[1]),
    )
    return measured, Examples(*examples, real.read('training', neighbour), protocol.context)


def score_reconstruction(measure: Measure, reconstruct: Reconstruct, progress: Progress = no_progress) -> Spread:
    """Compute the Fréchet distance of real clips after a tokenizer, which bounds generators in its latents.

    The floor is that of the same clips without the tokenizer. Stages: the first two of REAL_STAGES, TOKENIZER_STAGE.
    """
    reference, others = (measure.real_features(kind, progress).clip for kind in ('reference', 'others'))
    return Spread(_frechet(reference, others), (_frechet(reference, _reconstructed(measure, reconstruct, progress)),))


def _reconstructed(measure: Measure, reconstruct: Reconstruct, progress: Progress) -> np.ndarray:
    """Return features [N,D] of the floor's clips after a tokenizer."""
    return measure.split(measure.features_of('others', reconstruct, progress)).clip


def _metric(extractor: Extractor, protocol: Distances) -> str:
    return f'{extractor.metric}/n{protocol.clips}'


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(Moments.of(a), Moments.of(b))


def _distances(sets: dict[Set, _FeatureSet], draws: list[_FeatureSet]) -> dict[str, Any]:
    """Return the fields of `Score` that compare features, for each set and for the floor."""
    reference, training = sets['reference'], sets['training']

    def spread(measure: Callable[[_FeatureSet], float]) -> Spread:
        return Spread(measure(sets['others']), tuple(measure(draw) for draw in draws))

    def frechet_of(part: Callable[[_FeatureSet], np.ndarray]) -> Spread:
        return spread(lambda clips: _frechet(part(reference), part(clips)))

    return {
        'frechet': frechet_of(lambda clips: clips.clip),
        'kernel': spread(lambda clips: kernel_distance(reference.clip, clips.clip)),
        'coverage': spread(lambda clips: neighbours.coverage(reference.clip, clips.clip)),
        'training': spread(lambda clips: float(np.median(neighbours.nearest(clips.clip, training.clip)[0]))),
        'curve': {frame: frechet_of(lambda clips, frame=frame: clips.parts[frame]) for frame in reference.parts},
        'stills': {frame: frechet_of(lambda clips, frame=frame: clips.stills[frame]) for frame in reference.stills},
    }


def _batch_seed(seed: int, draw: int, start: int) -> int:
    """Return the seed of the generator for the batch of a set that begins with clip `start`."""
    return int(np.random.SeedSequence([seed, draw, start]).generate_state(1)[0])


def _compare(generated: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return PSNR and SSIM of each generated frame, [B,T-C]."""
    return {'psnr': pixels.psnr(generated, truth), 'ssim': pixels.ssim(generated, truth)}


def _mean(parts: list[np.ndarray]) -> list[float]:
    return np.concatenate(parts).mean(axis=0).tolist()


def _notes(protocol: Distances, real: RealClips, width: int) -> tuple[str, ...]:
    notes = []
    if protocol.clips <= width:
        notes.append(f'{protocol.clips} clips are too few for {width} features: the numbers only test the code.')
    if real.repeats:
        notes.append('The split has fewer videos than two sets need: some give several clips, so the floor is too low.')
    if protocol.context and protocol.context_of == 'reference':
        notes.append('Generated clips share their context frames with the reference, so they can fall below the floor.')
    return tuple(notes)
