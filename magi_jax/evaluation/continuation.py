"""Clips of any run, continued from their first frames and compared with the real frames one by one.

Dimension key: B clips, C context frames, L generated frames, T = C + L, S seeds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from magi_jax.evaluation import pixels
from magi_jax.evaluation.continuation_clips import RealContinuations

BATCH = 64  # clips in memory at once; samples of a clip do not depend on it
METRICS = {'psnr': pixels.psnr, 'ssim': pixels.ssim}

# (context uint8 [B,C,H,W,3], seed, numbers of the clips) -> uint8 [B,T,H,W,3] with the context
Generate = Callable[[np.ndarray, int, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class MetricByFrame:
    """One metric per generated frame, averaged over clips."""

    generated: np.ndarray  # float [S,L]
    repeated: np.ndarray  # float [L], metric of the repeated last context frame

    @property
    def mean(self) -> float:
        """Mean over seeds and frames."""
        return float(self.generated.mean())

    @property
    def std(self) -> float:
        """Unbiased standard deviation of the means of the seeds; 0 for a single seed."""
        return float(_std(self.generated.mean(axis=1)))

    @property
    def by_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over seeds, [L] each."""
        return self.generated.mean(axis=0), _std(self.generated)

    def to_json(self) -> dict[str, Any]:
        """Return all values as floats and lists of floats."""
        mean, std = self.by_frame
        return {
            'mean': self.mean,
            'std': self.std,
            'repeat_last_frame': float(self.repeated.mean()),
            'by_seed': self.generated.mean(axis=1).tolist(),
            'by_frame': {'mean': mean.tolist(), 'std': std.tolist(), 'repeat_last_frame': self.repeated.tolist()},
        }


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Results of the protocol `continuation`.

    Attributes:
      name: name of the protocol with its flags.
      clips: the real clips.
      metrics: values of each metric by name.
    """

    name: str
    clips: RealContinuations
    metrics: dict[str, MetricByFrame]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers and their settings as JSON types."""
        protocol = self.clips.protocol
        return {
            'protocol': self.name,
            'settings': dataclasses.asdict(protocol) | {'clips': len(self.clips), 'split': self.clips.split},
            'frames': list(range(protocol.context + 1, protocol.frames + 1)),
            **{name: values.to_json() for name, values in self.metrics.items()},
            'notes': list(self.clips.notes),
        }


@dataclasses.dataclass(frozen=True)
class ExampleClips:
    """Example clips of the first seed, uint8 [B,T,H,W,3] each."""

    real: np.ndarray
    generated: np.ndarray


def score_continuation(
    name: str,
    clips: RealContinuations,
    generate: Generate,
    seed: int,
    example_count: int,
    progress: Callable[[Iterable[Any], int], Iterator[Any]] = lambda batches, total: iter(batches),
) -> tuple[Continuation, ExampleClips]:
    """Continue every clip with every seed, and compare the generated frames with the real ones.

    Args:
      name: name of the protocol with its flags.
      clips: result of `open_clips`.
      generate: function that continues a batch of clips.
      seed: first seed; further seeds are seed + 1, seed + 2, ...
      example_count: number of example clips to return.
      progress: wrapper of the iterator over batches; its second argument is their number.
    """
    context, seeds = clips.protocol.context, clips.protocol.seeds
    starts = range(0, len(clips), BATCH)
    generated: dict[str, list[list[np.ndarray]]] = {metric: [[] for _ in range(seeds)] for metric in METRICS}
    repeated: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
    examples = None
    for start, draw in progress([(start, draw) for start in starts for draw in range(seeds)], len(starts) * seeds):
        numbers = np.arange(start, min(start + BATCH, len(clips)))
        real = clips.read(numbers)
        video = generate(real[:, :context], seed + draw, numbers)
        if examples is None:
            examples = ExampleClips(real[:example_count], video[:example_count])
        truth = real[:, context:]
        for metric, compare in METRICS.items():
            generated[metric][draw].append(compare(video[:, context:], truth))
            if not draw:
                still = pixels.repeat_last_context(real[:, :context], truth.shape[1])
                repeated[metric].append(compare(still, truth))
    metrics = {
        metric: MetricByFrame(np.stack([_mean(parts) for parts in generated[metric]]), _mean(repeated[metric]))
        for metric in METRICS
    }
    return Continuation(name, clips, metrics), examples


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    """Average parts [B,L] over all clips. Return float64 [L]."""
    return np.concatenate(parts).astype(np.float64).mean(axis=0)


def _std(values: np.ndarray) -> np.ndarray:
    """Return the unbiased standard deviation over the first axis; 0 for a single value."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
