"""Many runs beside each other: one row of a table for each way to train, and their courses over the frames.

A way is written as the variants of a config, 'masked,no_noise'; it was run with one or several seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magi_jax.evaluation import charts, report

CLIPS, STILLS, LONG = 'clips', 'stills', 'long'  # what a protocol looks at
MOMENTS = (16, 32, 64, 128)  # frames at which long videos are told apart

Result = Mapping[str, Any]  # of `Score.to_json`


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained and measured.

    Attributes:
      tokenizer: config of the autoencoder that all runs share.
      runs: variants of the study's config -> how many times, each with another seed.
      protocols: CLIPS, STILLS and LONG -> name of a protocol.
    """

    tokenizer: str
    runs: Mapping[str, int]
    protocols: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Way:
    """What its runs scored.

    Attributes:
      name: in words.
      runs: of each seed, protocol -> result.
    """

    name: str
    runs: Sequence[Mapping[str, Result]]

    def distances(self, protocol: str) -> np.ndarray:
        """The Fréchet distance of each run, the mean over its draws."""
        return np.array([run[protocol]['frechet']['mean'] for run in self.runs])

    def course(self, protocol: str) -> dict[int, np.ndarray]:
        """Frame -> the distance there, of each run."""
        curves = [run[protocol]['curve'] for run in self.runs]
        return {int(frame): np.array([curve[frame]['mean'] for curve in curves]) for frame in curves[0]}


def describe(variants: str) -> str:
    """'masked,no_noise' -> 'MTF, intervals'."""
    names = variants.split(',')
    words = ['MTF' if 'masked' in names else 'CTF']
    words += [] if 'one_interval' in names else ['intervals']
    words += [] if 'no_noise' in names else ['noise']
    return ', '.join(words)


def cells(ways: Sequence[Way]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table; the last row is that of real clips."""
    protocols = [ways[0].runs[0][name]['protocol'] for name in (CLIPS, STILLS, LONG)]
    moments = [moment for moment in MOMENTS if moment in ways[0].course(LONG)]
    head = ['trained with', 'seeds', *(f'`{name}`' for name in protocols[:2])]
    head += [f'frame {moment} of `{protocols[2]}`' for moment in moments]
    rows = []
    for way in ways:
        values = [way.distances(CLIPS), way.distances(STILLS), *(way.course(LONG)[moment] for moment in moments)]
        rows.append([way.name, str(len(way.runs)), *map(_plus_minus, values)])
    first = ways[0].runs[0]
    floors = [first[name]['frechet']['floor'] for name in (CLIPS, STILLS)]
    floors += [first[LONG]['curve'][str(moment)]['floor'] for moment in moments]
    return head, [*rows, ['real clips', '', *(f'{floor:.1f}' for floor in floors)]]


def gain(ways: Mapping[str, Way], protocol: str) -> str:
    """How far below MTF's distance CTF's is, both with both strategies: a sentence."""
    complete, masked = (ways[variants].distances(protocol) for variants in ('', 'masked'))
    part = 1 - complete.mean() / masked.mean()
    seeds = min(len(complete), len(masked))
    return (
        f'CTF {_plus_minus(complete)} against MTF {_plus_minus(masked)}: {100 * abs(part):.0f} % '
        f'{"lower" if part > 0 else "higher"} ({seeds} seeds, {ways[""].runs[0][protocol]["protocol"]}).'
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


def render(title: str, ways: Sequence[Way], sentences: Sequence[str], facts: Mapping[str, str], data: Any) -> str:
    """The page as HTML; it loads nothing. Raises ValueError if a number is not finite."""
    head, rows = cells(ways)
    drawn = [_chart('Clips of 16 frames around a frame', ways, LONG), _chart('Frames alone', ways, STILLS)]
    sections = [
        report.section('Table', 'Fréchet distance of the embedded classifier, mean ± deviation over seeds.',
                       report.table([name.replace('`', '') for name in head], rows)),
        report.section('Course', 'The distance by the number of the frame.',
                       f'<div class="charts">{"".join(drawn)}</div>'),
    ]  # fmt: skip
    return report.page(title, ' '.join(sentences), facts, sections, data)


def _chart(title: str, ways: Sequence[Way], protocol: str) -> str:
    lines = {
        way.name: [(frame, float(values.mean())) for frame, values in way.course(protocol).items()] for way in ways
    }
    return charts.line_chart(title, ('frame', 'lower is better'), lines, logarithmic=True)


def _plus_minus(values: np.ndarray) -> str:
    return f'{values.mean():.1f} ± {values.std(ddof=1):.1f}' if len(values) > 1 else f'{values.mean():.1f}'
