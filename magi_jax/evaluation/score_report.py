"""The page of a score: a table of distances, charts over the frames, clips, and their nearest training clips."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from magi_jax.evaluation import charts, report
from magi_jax.evaluation.scoring import Examples, Score, Spread

WHAT = {
    'frechet': ('Fréchet distance', 'lower is better'),
    'kernel': ('Kernel distance (unbiased)', 'lower is better, around 0 for real clips'),
    'coverage': ('Coverage', 'part of the real clips, higher is better'),
    'training': ('Distance to the nearest training clip (median)', 'far below real clips: memorized'),
}


@dataclasses.dataclass(frozen=True)
class ScoreContent:
    """Content of the page.

    Attributes:
      title: title of the page.
      summary: text below the title.
      score: result of `scoring.score`.
      shown: examples of the same.
      settings: config of the run.
      commands: commands that make the page again.
      facts: name -> value, listed below the summary.
    """

    title: str
    summary: str
    score: Score
    shown: Examples
    settings: Mapping[str, Any]
    commands: Sequence[str]
    facts: Mapping[str, str]


def render_score(content: ScoreContent) -> str:
    """Render the page as self-contained HTML. Raise ValueError if a number is not finite."""
    score, data = content.score, content.score.to_json()
    return report.render_page(
        'score_report',
        content.title,
        content.summary,
        content.facts,
        data,
        score=score,
        table=_table(score),
        charts=_charts(score),
        shown=content.shown,
        commands=content.commands,
        settings=data['settings'] | content.settings,
    )


def _table(score: Score) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows, one row for each distance."""
    rows = []
    for field, (name, meaning) in WHAT.items():
        spread = getattr(score, field)
        ratio = f'{spread.mean / spread.floor:.2f}' if spread.floor > 0 else '–'
        rows.append([f'{name} ({meaning})', _plus_minus(spread), f'{spread.floor:.4g}', ratio * (field == 'frechet')])
    return [score.extractor.label, 'Generated', 'Real', 'Generated / real'], rows


def _plus_minus(spread: Spread) -> str:
    return f'{spread.mean:.4g} ± {spread.std:.2g}' if len(spread.draws) > 1 else f'{spread.mean:.4g}'


def _charts(score: Score) -> list[charts.Chart]:
    drawn = []
    for title, spreads in (('Fréchet distance', score.curve), ('Fréchet distance of frames alone', score.stills)):
        if spreads:
            lines = {
                'generated': [(frame, spread.mean) for frame, spread in spreads.items()],
                'real': [(frame, spread.floor) for frame, spread in spreads.items()],
            }
            drawn.append(charts.line_chart(title, ('frame', 'lower is better'), lines))
    start = score.protocol.context + 1
    for name, unit in (('psnr', 'dB, higher is better'), ('ssim', 'higher is better')):
        if name in score.pixels:
            points = {'generated': list(enumerate(score.pixels[name], start))}
            drawn.append(charts.line_chart(name.upper(), ('frame', unit), points))
    return drawn
