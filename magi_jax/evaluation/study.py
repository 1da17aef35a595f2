"""Compares many runs: one table row for each variant, and distances along the video.

A variant is written as in a config, such as 'masked,no_noise'. It is trained with one or several seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from magi_jax.evaluation import charts, report

CLIPS, LONG = 'clips', 'long'  # keys of protocols: clips as long as in training, and much longer ones
HORIZONS = (16, 32, 64, 128)  # frames at which long videos are compared

Result = Mapping[str, Any]  # result of `Score.to_json`


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs and protocols of a study.

    Attributes:
      tokenizer: config of the autoencoder of all runs.
      runs: variants of the config of the study -> number of runs, each with its own seed.
      protocols: CLIPS and LONG -> name of a protocol that also compares single frames.
    """

    tokenizer: str
    runs: Mapping[str, int]
    protocols: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Variant:
    """The results of one variant.

    Attributes:
      name: description in words.
      runs: for each seed, protocol -> result.
    """

    name: str
    runs: Sequence[Mapping[str, Result]]

    def distances(self) -> np.ndarray:
        """Return the Fréchet distance of the clips of each run, the mean over its draws."""
        return np.array([run[CLIPS]['frechet']['mean'] for run in self.runs])

    def trajectory(self, protocol: str, part: Literal['curve', 'stills']) -> dict[int, np.ndarray]:
        """Return frame -> distance of the window that ends there, or of that frame alone, for each run."""
        courses = [run[protocol][part] for run in self.runs]
        return {int(frame): np.array([course[frame]['mean'] for course in courses]) for frame in courses[0]}

    def last_frame_distances(self) -> np.ndarray:
        """Return the distance of the last frame of the clips of each run."""
        return list(self.trajectory(CLIPS, 'stills').values())[-1]


def describe(variants: str) -> str:
    """Describe variants in words: 'masked,no_noise' -> 'MTF, intervals'."""
    names = variants.split(',')
    words = ['MTF' if 'masked' in names else 'CTF']
    words += [] if 'one_interval' in names else ['intervals']
    words += [] if 'no_noise' in names else ['noise']
    return ', '.join(words)


def cells(variants: Sequence[Variant]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table; the last row is that of real clips."""
    first = variants[0].runs[0]
    moments = [moment for moment in HORIZONS if moment in variants[0].trajectory(LONG, 'curve')]
    head = ['trained with', 'seeds', 'clips', 'last frame alone', *(f'to frame {moment}' for moment in moments)]
    rows = []
    for variant in variants:
        windows = variant.trajectory(LONG, 'curve')
        values = [variant.distances(), variant.last_frame_distances(), *(windows[moment] for moment in moments)]
        rows.append([variant.name, str(len(variant.runs)), *map(_plus_minus, values)])
    floors = [first[CLIPS]['frechet'], list(first[CLIPS]['stills'].values())[-1]]
    floors += [first[LONG]['curve'][str(moment)] for moment in moments]
    return head, [*rows, ['real clips', '', *(f'{spread["floor"]:.1f}' for spread in floors)]]


def sentences(variants: Mapping[str, Variant]) -> list[str]:
    """Return sentences that compare CTF with MTF, for each variant, and explain the columns."""
    protocols = [next(iter(variants.values())).runs[0][kind]['protocol'] for kind in (CLIPS, LONG)]
    said = [f'Clips and their last frame: protocol {protocols[0]}; 16 frames up to the n-th: {protocols[1]}.']
    if '' in variants and 'masked' in variants:
        complete, masked = variants[''], variants['masked']
        said.append(f'Clips: {_compared(complete.distances(), masked.distances())}.')
        said.append(f'Last frame alone: {_compared(complete.last_frame_distances(), masked.last_frame_distances())}.')
    return said


def _compared(complete: np.ndarray, masked: np.ndarray) -> str:
    part = 1 - complete.mean() / masked.mean()
    return (
        f'CTF {_plus_minus(complete)} against MTF {_plus_minus(masked)}, {100 * abs(part):.0f} % '
        f'{"lower" if part > 0 else "higher"}'
    )


def render(title: str, variants: Mapping[str, Variant], facts: Mapping[str, str]) -> str:
    """Render the page as self-contained HTML. Raise ValueError if a number is not finite."""
    drawn = [
        _chart('16 frames up to the n-th', variants, LONG, 'curve'),
        _chart('The n-th frame alone', variants, LONG, 'stills'),
        _chart('The n-th frame alone, within the trained length', variants, CLIPS, 'stills'),
    ]
    data = {'facts': facts, 'variants': {name: variant.runs for name, variant in variants.items()}}
    table = cells(list(variants.values()))
    return report.render_page('study', title, ' '.join(sentences(variants)), facts, data, table=table, charts=drawn)


def _chart(
    title: str, variants: Mapping[str, Variant], protocol: str, part: Literal['curve', 'stills']
) -> charts.Chart:
    # A given frame is real, so its distance is meaningless and may be 0.
    lines = {
        variant.name: [
            (frame, float(values.mean())) for frame, values in variant.trajectory(protocol, part).items() if frame > 1
        ]
        for variant in variants.values()
    }
    return charts.line_chart(title, ('n', 'lower is better'), lines, logarithmic=True)


def _plus_minus(values: np.ndarray) -> str:
    mean, digits = values.mean(), 0 if values.mean() >= 100 else 1
    deviation = f' ± {values.std(ddof=1):,.{digits}f}' if len(values) > 1 else ''
    return f'{mean:,.{digits}f}{deviation}'
