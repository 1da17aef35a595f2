"""Distances of generated clips to real ones under a protocol, with what it takes to read them.

N clips of a set, B of a batch, C context frames, T frames, W frames of the network's window, S time slots, D width.
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

BATCH = 64  # clips generated at once; fixed, since the random numbers of a clip depend on its batch
SHOWN = 6

Features = Callable[[np.ndarray], np.ndarray]  # of `Extractor.on`
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 [B,T,H,W,3] -> the same after a tokenizer
# (context uint8 [B,C,H,W,3], seed) -> uint8 [B,T,H,W,3] with the context
Generate = Callable[[np.ndarray, int], np.ndarray]
# Begins the next stage and wraps its iterator over batches, told their number.
Progress = Callable[[Iterable[Any], int], Iterator[Any]]
REAL_STAGES = {kind: f'features of real clips ({kind})' for kind in SETS}
SAMPLING_STAGE = 'sampling clips, with their features'
TOKENIZER_STAGE = 'features of real clips after the tokenizer'


def unwatched(batches: Iterable[Any], total: int) -> Iterator[Any]:
    """Show no progress."""
    return iter(batches)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A quantity of each draw of generated clips, and of real clips in their place."""

    floor: float
    draws: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return float(np.mean(self.draws))

    @property
    def std(self) -> float:
        """Over the draws, unbiased; 0 for a single one."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Mean, deviation and floor with the draws they come from."""
        return {'mean': self.mean, 'std': self.std, 'floor': self.floor, 'draws': list(self.draws)}


@dataclasses.dataclass(frozen=True)
class Score:
    """Everything that was measured under a protocol of distances.

    Attributes:
      extractor: decides the name of the distance.
      protocol_name: of PROTOCOLS.
      protocol: what that name stands for.
      frechet: the distance; its floor is that of as many other real clips.
      kernel: the same by an unbiased estimate: around 0 for real clips.
      coverage: of `neighbours.coverage`.
      reconstruction: the Fréchet distance of the floor's clips after the tokenizer, which the generator cannot beat but
        by luck; None if not measured.
      training: median distance to the nearest of N training clips; far below the floor, clips were learnt by heart.
      curve: number of the last frame of a window or slot -> distance of that part alone.
      stills: number of a frame -> distance of that frame alone, standing still; for protocols that ask for it.
      pixels: PSNR and SSIM against the true continuation by generated frame, where there is one (else empty).
      notes: what a reader must know, in sentences.
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
        """The distance's full name."""
        return _metric(self.extractor, self.protocol)

    def to_json(self) -> dict[str, Any]:
        """All of it as what JSON knows."""
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
    """Some clips to look at, uint8 [B,T,H,W,3] each."""

    real: np.ndarray  # those whose context was given
    generated: np.ndarray
    training: np.ndarray  # of N training clips, those nearest to the generated ones
    context: int


@dataclasses.dataclass(frozen=True)
class _FeatureSet:
    """What of a set is compared, each [N,D]: the clips' features, and by frame those of parts and of stills."""

    clip: np.ndarray
    parts: dict[int, np.ndarray]
    stills: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measure:
    """What generators are measured with.

    Attributes:
      name: of the protocol.
      extractor: of `make_extractor`.
      features: `extractor.on(mesh)`.
      real: the protocol's real clips.
      cache: folder where features of real clips are kept; None: nowhere.
    """

    name: str
    extractor: Extractor
    features: Features
    real: RealClips
    cache: pathlib.Path | None = None

    @property
    def metric(self) -> str:
        """The distance's full name."""
        return _metric(self.extractor, self.real.protocol)

    def windows(self, video: np.ndarray) -> np.ndarray:
        """Features [B,windows,S,D] of [B,T,H,W,3]: of neighbouring windows up to the end, then of each still."""
        window = self.extractor.window or video.shape[1]
        seen = [video[:, end - window : end] for end in self.ends()]
        seen += [np.repeat(video[:, [frame - 1]], window, axis=1) for frame in self.stills()]
        return np.stack([self.features(clips) for clips in seen], axis=1)

    def ends(self) -> list[int]:
        """Number of the last frame of each window."""
        frames = self.real.protocol.frames
        window = self.extractor.window or frames
        return list(range(frames, window - 1, -window))[::-1]

    def stills(self) -> list[int]:
        """Number of each frame that is seen alone."""
        protocol = self.real.protocol
        return list(range(protocol.frames, 0, -protocol.stills))[::-1] if protocol.stills else []

    def real_part(self, kind: Set, progress: Progress = unwatched) -> _FeatureSet:
        """Of a set of real clips; from the cache if they were seen before."""
        identity = [self.extractor.metric, self.extractor.sha256, dataclasses.asdict(self.real.protocol)]
        identity += [self.real.digest(), kind]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        path = self.cache and self.cache / f'{key}.npy'
        if path and path.exists():
            list(progress((), 0))
            return self.split(np.load(path))
        windows = self.seen(kind, lambda video: video, progress)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f'.{os.getpid()}.npy')
            np.save(unfinished, windows)
            unfinished.replace(path)
        return self.split(windows)

    def seen(self, kind: Set, change: Reconstruct, progress: Progress) -> np.ndarray:
        """What `windows` gives for a set of real clips, each batch changed first."""
        batches = progress(self.real.batches(kind, BATCH), -(-self.real.protocol.clips // BATCH))
        return np.concatenate([self.windows(change(video)) for video in batches])

    def split(self, windows: np.ndarray) -> _FeatureSet:
        """Of what `windows` gives for a set: the last window; every window or, of a single one, slot; stills."""
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
    progress: Progress = unwatched,
) -> tuple[Score, Examples]:
    """Measures a generator.

    Args:
      measure: the protocol, its clips and the network.
      generate: makes N clips a draw, BATCH at a time; every call gets its own seed.
      reconstruct: by the generator's tokenizer; None: it takes no such clips.
      seed: of all draws.
      progress: called for each stage: REAL_STAGES, SAMPLING_STAGE and, with `reconstruct`, TOKENIZER_STAGE.
    """
    real, protocol = measure.real, measure.real.protocol
    sets = {kind: measure.real_part(kind, progress) for kind in SETS}
    jobs = [(draw, start) for draw in range(protocol.seeds) for start in range(0, protocol.clips, BATCH)]
    made: list[list[np.ndarray]] = [[] for _ in range(protocol.seeds)]
    compared, shown = [], None
    for draw, start in progress(jobs, len(jobs)):
        truth = real.read(protocol.context_of, np.arange(start, min(start + BATCH, protocol.clips)))
        video = generate(truth[:, : protocol.context], _batch_seed(seed, draw, start))
        made[draw].append(measure.windows(video))
        if protocol.context:
            compared.append(_compare(video[:, protocol.context :], truth[:, protocol.context :]))
        shown = shown or (truth[:SHOWN], video[:SHOWN])
    draws = [measure.split(np.concatenate(windows)) for windows in made]
    ceiling = None
    if reconstruct is not None:
        ceiling = _frechet(sets['reference'].clip, _reconstructed(measure, reconstruct, progress))
    _, neighbour = neighbours.nearest(draws[0].clip[:SHOWN], sets['training'].clip)
    measured = Score(
        measure.extractor,
        measure.name,
        protocol,
        **_distances(sets, draws),
        reconstruction=ceiling,
        pixels={key: _mean([each[key] for each in compared]) for key in (compared[0] if compared else ())},
        notes=_notes(protocol, real, sets['reference'].clip.shape[1]),
    )
    return measured, Examples(*shown, real.read('training', neighbour), protocol.context)


def score_reconstruction(measure: Measure, reconstruct: Reconstruct, progress: Progress = unwatched) -> Spread:
    """The Fréchet distance of real clips after a tokenizer, which a generator in its latents cannot beat but by luck.

    Its floor is that of the same clips without the tokenizer. Stages: the first two of REAL_STAGES, TOKENIZER_STAGE.
    """
    reference, others = (measure.real_part(kind, progress).clip for kind in ('reference', 'others'))
    return Spread(_frechet(reference, others), (_frechet(reference, _reconstructed(measure, reconstruct, progress)),))


def _reconstructed(measure: Measure, reconstruct: Reconstruct, progress: Progress) -> np.ndarray:
    """Features [N,D] of the floor's clips after a tokenizer."""
    return measure.split(measure.seen('others', reconstruct, progress)).clip


def _metric(extractor: Extractor, protocol: Distances) -> str:
    return f'{extractor.metric}/n{protocol.clips}'


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(Moments.of(a), Moments.of(b))


def _distances(sets: dict[Set, _FeatureSet], draws: list[_FeatureSet]) -> dict[str, Any]:
    """The fields of `Score` that compare features: each draw, and the other real clips for the floor."""
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
    """The generator's seed for the batch of a draw that begins with clip `start`."""
    return int(np.random.SeedSequence([seed, draw, start]).generate_state(1)[0])


def _compare(generated: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR and SSIM of each generated frame, [B,T-C]."""
    return {'psnr': pixels.psnr(generated, truth), 'ssim': pixels.ssim(generated, truth)}


def _mean(parts: list[np.ndarray]) -> list[float]:
    return np.concatenate(parts).mean(axis=0).tolist()


def _notes(protocol: Distances, real: RealClips, width: int) -> tuple[str, ...]:
    notes = []
    if protocol.clips <= width:
        notes.append(f'{protocol.clips} clips do not fill {width} dimensions: nothing but a check that it runs.')
    if real.repeats:
        notes.append('The split has fewer videos than two sets need: some give several clips, the floor is too low.')
    if protocol.context and protocol.context_of == 'reference':
        notes.append('Generated clips share their context frames with the reference: they can fall below the floor.')
    return tuple(notes)
