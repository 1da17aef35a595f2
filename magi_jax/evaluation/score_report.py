"""The page of a score: the distances in a table, their course over the frames, clips, and what was nearest to them."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

from magi_jax.evaluation import charts, report
from magi_jax.evaluation.scoring import Examples, Score, Spread

WHAT = {
    'frechet': ('Fréchet distance', 'lower is better'),
    'kernel': ('Kernel distance (unbiased)', 'lower is better, around 0 for real clips'),
    'coverage': ('Coverage', 'part of the real clips, higher is better'),
    'training': ('Distance to the nearest training clip (median)', 'far below real clips: learnt by heart'),
}


@dataclasses.dataclass(frozen=True)
class ScoreContent:
    """All that the page says."""

    title: str
    summary: str
    score: Score
    shown: Examples
    settings: Mapping[str, Any]  # of the run
    commands: Sequence[str]
    facts: Mapping[str, str]


def render_score(content: ScoreContent) -> str:
    """The page as HTML; it loads nothing. Raises ValueError if a number is not finite."""
    score, shown = content.score, content.shown
    data = score.to_json()
    sections = [
        report.section('Score', f'{score.extractor.label}, protocol {score.protocol_name}.', score_table(score)),
        report.section('Course', _trajectory_note(score), _charts(score)),
        report.section(
            'Clips',
            'Left: real. Right: generated.',
            report.pairs(shown.real, shown.generated, shown.context, 'clip'),
        ),
        report.section(
            'Nearest training clips',
            f'Left: of {score.protocol.clips} training clips, the one with the nearest features. Right: generated.',
            report.pairs(shown.training, shown.generated, shown.context, 'clip'),
        ),
        report.section('Settings', '', report.settings_part(content.commands, data['settings'] | content.settings)),
    ]
    return report.page(content.title, content.summary, content.facts, sections, data)


def score_table(score: Score) -> str:
    """Every quantity with its floor, and what a reader must know."""
    rows = [
        [f'{name} ({meaning})', _plus_minus(getattr(score, field)), f'{getattr(score, field).floor:.4g}']
        for field, (name, meaning) in WHAT.items()
    ]
    rows[0].append(f'{score.frechet.mean / score.frechet.floor:.2f}' if score.frechet.floor > 0 else '–')
    rows = [row + [''] * (4 - len(row)) for row in rows]
    protocol = score.protocol
    notes = [
        f'{score.metric}. {protocol.clips} generated clips against {protocol.clips} real ones, {protocol.seeds} times '
        'over: mean ± standard deviation. “Real” is the same for as many other real clips.',
        *score.notes,
    ]
    if score.reconstruction is not None:
        notes.insert(1, f'Real clips after the tokenizer: Fréchet distance {score.reconstruction:.4g}.')
    heads = [score.extractor.label, 'Generated', 'Real', 'Generated / real']
    return report.table(heads, rows) + ''.join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _plus_minus(spread: Spread) -> str:
    return f'{spread.mean:.4g} ± {spread.std:.2g}' if len(spread.draws) > 1 else f'{spread.mean:.4g}'


def _trajectory_note(score: Score) -> str:
    return 'Distance of each part of the clips alone, by its last frame.' if score.curve else ''


def _charts(score: Score) -> str:
    drawn = []
    for title, course in (('Fréchet distance', score.curve), ('Fréchet distance of frames alone', score.stills)):
        if course:
            lines = {
                'generated': [(frame, spread.mean) for frame, spread in course.items()],
                'real': [(frame, spread.floor) for frame, spread in course.items()],
            }
            drawn.append(charts.line_chart(title, ('frame', 'lower is better'), lines))
    start = score.protocol.context + 1
    for name, unit in (('psnr', 'dB, higher is better'), ('ssim', 'higher is better')):
        if name in score.pixels:
            points = {'generated': list(enumerate(score.pixels[name], start))}
            drawn.append(charts.line_chart(name.upper(), ('frame', unit), points))
    return f'<div class="charts">{"".join(drawn)}</div>'
