"""Self-contained HTML pages from templates, and the report of a run on bouncing shapes."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from magi_jax.evaluation import charts, pictures, pixels
from magi_jax.evaluation.prediction import Result

NAMES = {
    'model': 'generated',
    'real': 'real frames',
    'repeat_last_context': 'repeat last frame',
    'plain_background': 'plain background',
}
PARTS = {'colour': 'colour kept', 'shape': 'shape kept', 'count': 'right number of objects', 'moving': 'moving'}
CHARTS = {  # curve -> title, unit, range
    'psnr': ('PSNR', 'dB, higher is better', None),
    'centre_error': ('Error of the objects’ centres', 'pixels, lower is better', None),
    'colour': ('Objects that keep their colour and size', 'part of all objects', (0, 1)),
    'shape': ('Objects that also keep their shape', 'part of all objects', (0, 1)),
    'count': ('Videos with the right number of objects', 'part of all videos', (0, 1)),
    'moving': ('Objects that keep moving', 'part of all objects', (0, 1)),
}


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos to show.

    Attributes:
      real: uint8 [B,T,H,W,3].
      generated: uint8 [B,T,H,W,3], context frames included.
      context: number C of context frames.
    """

    real: np.ndarray
    generated: np.ndarray
    context: int


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """Content of the report; the caller reads the metrics of the runs.

    Attributes:
      title: title of the page.
      summary: description in two sentences.
      prediction: result of `score_prediction`.
      clips: predicted clips.
      rollout: result of `score_rollout`.
      long_clips: long videos.
      losses: chart -> line -> step -> loss, all above 0.
      settings: config of the run.
      commands: commands that make the page again.
      facts: device, versions and durations, name -> value.
    """

    title: str
    summary: str
    prediction: Result
    clips: Clips
    rollout: Result
    long_clips: Clips
    losses: Mapping[str, Mapping[str, Mapping[int, float]]]
    settings: Mapping[str, Any]
    commands: Sequence[str]
    facts: Mapping[str, str]


def write_page(path: str | os.PathLike, text: str) -> None:
    """Write a text file and make its folder. The file appears only when it is complete."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)


def render(content: ReportContent) -> str:
    """Render the report. Raise ValueError if a metric or a loss is not finite, or the shapes of clips differ."""
    results = content.prediction, content.rollout
    data = [result.to_json() for result in results]
    return render_page(
        'report',
        content.title,
        content.summary,
        content.facts,
        data,
        content=content,
        achieved=achieved(*results),
        goals=goals(results),
        prediction_charts=_charts(content.prediction),
        rollout_charts=_charts(content.rollout),
        loss_charts=[_loss_chart(name, lines) for name, lines in content.losses.items()],
        prediction_table=_prediction_table(content.prediction),
        rollout_table=_rollout_table(content.rollout),
    )


def render_page(template: str, title: str, summary: str, facts: Mapping[str, str], data: Any, **content: Any) -> str:
    """Render a page that loads nothing and runs no script.

    Args:
      template: name in the folder `templates`, without its ending .html.jinja.
      title: title of the page.
      summary: text below the title.
      facts: name -> value, listed below the summary.
      data: results as JSON types; the page holds them for programs.
      **content: values for the template.

    Raises:
      ValueError: a number in `data` is not finite.
    """
    page = ENVIRONMENT.get_template(f'{template}.html.jinja')
    return page.render(title=title, summary=summary, facts=facts, data=data, **content)


def achieved(prediction: Result, rollout: Result) -> list[str]:
    """Describe the results in sentences, independent of the goals."""
    numbers = prediction.numbers
    margin = numbers['margin_mean']
    baselines = ', '.join(f'{NAMES[name]}: {_decimals(numbers[f"psnr_{name}"])} dB' for name in pixels.BASELINES)
    ends = {part: [_percent(rollout.numbers[f'{part}_{kind}_end']) for kind in ('model', 'real')] for part in PARTS}
    kept = ', '.join(f'{PARTS[part]} {model} (real videos: {real})' for part, (model, real) in ends.items())
    return [
        f'{prediction.generated} frames predicted after {prediction.context} given ones: PSNR '
        f'{_decimals(numbers["psnr_model"])} dB, {_decimals(abs(margin))} dB {"above" if margin >= 0 else "below"} the '
        f'better baseline ({baselines}).',
        f'Videos continued for {rollout.generated} frames, at their end: {kept}.',
    ]


def goals(results: Iterable[Result]) -> dict[str, bool]:
    """Return the rules of all results, each with whether the run reached it."""
    return {rule: passed for result in results for rule, passed in result.passes.items()}


def _charts(result: Result) -> list[charts.Chart]:
    """Draw the curves <quantity>_<kind> over the number of the frame in the video."""
    drawn, start = [], result.context + 1
    for quantity, (title, unit, y_range) in CHARTS.items():
        curves = {name: result.curves.get(f'{quantity}_{kind}', ()) for kind, name in NAMES.items()}
        if curves[NAMES['model']]:
            lines = {name: list(enumerate(curve, start)) for name, curve in curves.items()}
            drawn.append(charts.line_chart(title, ('frame', unit), lines, y_range))
    return drawn


def _loss_chart(name: str, losses: Mapping[str, Mapping[int, float]]) -> charts.Chart:
    lines = {line: sorted(values.items()) for line, values in losses.items()}
    return charts.line_chart(name, ('optimizer step', 'loss, logarithmic'), lines, logarithmic=True)


def _prediction_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows."""
    kinds = 'model', 'repeat_last_context', 'plain_background'
    first, last = ({name: curve[frame] for name, curve in result.curves.items()} for frame in (0, -1))
    rows = [
        (f'PSNR, mean of {result.generated} frames (dB)', 'psnr', result.numbers),
        ('PSNR, generated frame 1 (dB)', 'psnr', first),
        (f'PSNR, generated frame {result.generated} (dB)', 'psnr', last),
    ]
    if 'centre_error_model' in result.curves:
        rows.append(('Centre error, mean (pixels)', 'centre_error', result.numbers))
        rows.append((f'Centre error, generated frame {result.generated} (pixels)', 'centre_error', last))
    return ['Prediction', *(NAMES[kind].capitalize() for kind in kinds)], [
        [label, *(_decimals(values.get(f'{quantity}_{kind}')) for kind in kinds)] for label, quantity, values in rows
    ]


def _rollout_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows."""
    labels = {'colour': 'Colour kept', 'shape': 'Shape kept', 'count': 'Count right', 'moving': 'Moving'}
    rows = []
    for quantity, label in labels.items():
        rows.append((f'{label}, mean of {result.generated} frames', quantity, '', _percent))
        rows.append((f'{label}, last frames', quantity, '_end', _percent))
    rows.append(('Speed (pixels per frame)', 'speed', '', _decimals))
    rows.append(('Bounces per object and 100 frames', 'bounces', '', _decimals))
    return ['Long video', 'Generated', 'Real'], [
        [label, *(text(result.numbers.get(f'{quantity}_{kind}{part}')) for kind in ('model', 'real'))]
        for label, quantity, part, text in rows
    ]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table for a terminal or a README, without a line break at the end."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (heads, ['---'] * len(heads), *rows))


def _decimals(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}'


def _percent(value: float | None) -> str:
    return '–' if value is None else f'{100 * value:.1f} %'


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader('magi_jax.evaluation'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.policies['json.dumps_kwargs'] = {'allow_nan': False}
ENVIRONMENT.filters |= {
    'decimals': _decimals,
    'percent': _percent,
    'sentence': lambda text: f'{text[0].upper()}{text[1:]}.',
    'indented_json': functools.partial(json.dumps, indent=2, ensure_ascii=False),
}
ENVIRONMENT.globals['pictures'] = pictures
