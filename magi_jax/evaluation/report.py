"""A run on one page: a single HTML file that loads nothing and runs no script."""

import dataclasses
import html
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from magi_jax.evaluation import charts, pictures, pixels
from magi_jax.evaluation.prediction import Result
from magi_jax.evaluation.report_style import STYLE

STRIP_STEP = 4  # frames from one picture of a film strip to the next
SHORT_FPS, LONG_FPS = 8, 16
NAMES = {
    'model': 'generated',
    'real': 'real frames',
    'repeat_last_context': 'repeat last frame',
    'plain_background': 'plain background',
}
PARTS = {'colour': 'colour kept', 'shape': 'shape kept', 'count': 'right number of objects', 'moving': 'moving'}


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos to show: both uint8 [B,T,H,W,3], the generated ones with their C context frames."""

    real: np.ndarray
    generated: np.ndarray
    context: int


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """All that a report says; the metrics of a run come from whoever may read them."""

    title: str
    summary: str  # what it is, in two sentences
    prediction: Result
    clips: Clips
    rollout: Result
    long_clips: Clips
    losses: Mapping[str, Mapping[str, Mapping[int, float]]]  # chart -> line -> step -> loss, all above 0
    settings: Mapping[str, Any]  # the config
    commands: Sequence[str]
    facts: Mapping[str, str]  # device, versions, durations


def write_report(path: str | os.PathLike, content: ReportContent) -> None:
    """Writes the page; it appears under its name only when it is complete.

    Raises:
      ValueError: a metric or a loss is not finite, or clips do not match.
      OSError: it cannot be written.
    """
    write_page(path, render(content))


def write_page(path: str | os.PathLike, html_text: str) -> None:
    """Writes a page so that it appears under its name only when it is complete; its folder is made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    unfinished.write_text(html_text, encoding='utf-8')
    unfinished.replace(path)


def render(content: ReportContent) -> str:
    """The page as HTML. Raises as `write_report`."""
    results = [content.prediction, content.rollout]
    sections = [
        section('Result', '', _verdict(results)),
        section(
            'Prediction', sentence(content.prediction.protocol), _clips(content.clips), _prediction_charts(content)
        ),
        section(
            'Long video', sentence(content.rollout.protocol), _long_clips(content.long_clips), _rollout_charts(content)
        ),
        section('Numbers', '', _prediction_table(content.prediction), _rollout_table(content.rollout)),
        section('Training', 'Long curves are averaged over neighbouring steps.', _loss_charts(content.losses)),
        section('Settings', '', settings_part(content.commands, content.settings)),
    ]
    data = [result.to_json() for result in results]
    return page(content.title, content.summary, content.facts, sections, data)


def page(title: str, summary: str, facts: Mapping[str, str], sections: Sequence[str], data: Any) -> str:
    """A whole page as HTML.

    Args:
      title: as text.
      summary: the same.
      facts: name -> value, at the top.
      sections: of `section`.
      data: the results as what JSON knows; they come along for programs.

    Raises:
      ValueError: a number of the data is not finite.
    """
    # A page must not say NaN where a number belongs; "<" is escaped so that no text can end the script element.
    results = json.dumps(data, allow_nan=False).replace('<', '\\u003c')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>'
        f'<header><h1>{html.escape(title)}</h1><p class="lead">{html.escape(summary)}</p>'
        f'{_facts(facts)}</header>{"".join(sections)}</main>'
        f'<script type="application/json" id="results">{results}</script></body></html>\n'
    )


def section(title: str, note: str, *parts: str) -> str:
    """A titled part of the page; its address is the title in small letters."""
    note = f'<p class="note">{html.escape(note)}</p>' if note else ''
    return f'<section id="{title.lower().replace(" ", "-")}"><h2>{title}</h2>{note}{"".join(parts)}</section>'


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f'{text[0].upper()}{text[1:]}.'


def _facts(facts: Mapping[str, str]) -> str:
    items = (f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>' for name, value in facts.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def achieved(prediction: Result, rollout: Result) -> list[str]:
    """Return in sentences what the numbers say, before any goal is looked at."""
    number = prediction.numbers
    margin = number['margin_mean']
    baselines = ', '.join(f'{NAMES[name]}: {_number(number[f"psnr_{name}"])} dB' for name in pixels.BASELINES)
    ends = {part: [_percent(rollout.numbers[f'{part}_{who}_end']) for who in ('model', 'real')] for part in PARTS}
    kept = ', '.join(f'{PARTS[part]} {model} (real videos: {real})' for part, (model, real) in ends.items())
    return [
        f'{prediction.generated} frames predicted after {prediction.context} given ones: PSNR '
        f'{_number(number["psnr_model"])} dB, {_number(abs(margin))} dB {"above" if margin >= 0 else "below"} the '
        f'better baseline ({baselines}).',
        f'Videos continued for {rollout.generated} frames, at their end: {kept}.',
    ]


def goals(results: Sequence[Result]) -> dict[str, bool]:
    """Return the rules of all results, each with whether it was reached."""
    return {rule: passed for result in results for rule, passed in result.passes.items()}


def _verdict(results: Sequence[Result]) -> str:
    rules = goals(results)
    found = ''.join(f'<p>{html.escape(line)}</p>' for line in achieved(*results))
    items = (
        f'<li class="{"pass" if passed else "fail"}"><b>{"reached" if passed else "missed"}</b> '
        f'<span>{html.escape(sentence(rule))}</span></li>'
        for rule, passed in rules.items()
    )
    return (
        f'{found}<h3>Goals: {sum(rules.values())} of {len(rules)} reached</h3>'
        f'<p class="note">README, section Results, lists the same goals.</p>'
        f'<ul class="rules">{"".join(items)}</ul>'
    )


def _clips(clips: Clips) -> str:
    return legend() + pairs(clips.real, clips.generated, clips.context, 'clip')


def _long_clips(clips: Clips) -> str:
    frames = pictures.add_borders(clips.generated, clips.context)
    strips = (
        f'<h3>Generated video {number + 1}, every {STRIP_STEP}th frame</h3>{_strip(video)}'
        for number, video in enumerate(frames)
    )
    return legend() + pairs(clips.real, clips.generated, clips.context, 'video', LONG_FPS) + ''.join(strips)


def legend() -> str:
    """Say what the colours of the borders mean, as HTML."""
    colours = {'given': pictures.GIVEN, 'real': pictures.REAL, 'generated': pictures.GENERATED}
    chips = (
        f'<span><i style="background:rgb{colour}"></i>{name}</span>'.replace(', ', ',')
        for name, colour in colours.items()
    )
    return f'<p class="legend">Left: real. Right: generated. Borders: {"".join(chips)}</p>'


def pairs(left: np.ndarray, right: np.ndarray, context: int, name: str, fps: float = SHORT_FPS) -> str:
    """Playing clips uint8 [B,T,H,W,3], real ones left and generated ones right, the first `context` frames marked."""
    figures = []
    for number, (real, generated) in enumerate(zip(left, right, strict=True), start=1):
        video = pictures.side_by_side(real[None], generated[None], context)
        _, height, width, _ = video.shape
        figures.append(
            f'<figure><img src="{pictures.animation_uri(video, fps)}" width="{2 * width}" height="{2 * height}" '
            f'alt="{name} {number}: real on the left, generated on the right"><figcaption>{name} {number}'
            '</figcaption></figure>'
        )
    return f'<div class="clips">{"".join(figures)}</div>'


def _strip(video: np.ndarray) -> str:
    figures = (
        f'<figure><img src="{pictures.image_uri(video[frame])}" alt="frame {frame + 1}">'
        f'<figcaption>{frame + 1}</figcaption></figure>'
        for frame in range(0, len(video), STRIP_STEP)
    )
    return f'<div class="strip">{"".join(figures)}</div>'


def _lines(result: Result, quantity: str) -> dict[str, list[tuple[float, float | None]]]:
    """Lines of the curves <quantity>_<who>, over the number of the frame in the video."""
    start = result.context + 1
    return {name: list(enumerate(result.curves.get(f'{quantity}_{who}', ()), start)) for who, name in NAMES.items()}


def _prediction_charts(content: ReportContent) -> str:
    drawn = [charts.line_chart('PSNR', ('frame', 'dB, higher is better'), _lines(content.prediction, 'psnr'))]
    if 'centre_error_model' in content.prediction.curves:
        lines = _lines(content.prediction, 'centre_error')
        drawn.append(charts.line_chart('Error of the objects’ centres', ('frame', 'pixels, lower is better'), lines))
    return f'<div class="charts">{"".join(drawn)}</div>'


def _rollout_charts(content: ReportContent) -> str:
    parts = {
        'colour': ('Objects that keep their colour and size', 'part of all objects'),
        'shape': ('Objects that also keep their shape', 'part of all objects'),
        'count': ('Videos with the right number of objects', 'part of all videos'),
        'moving': ('Objects that keep moving', 'part of all objects'),
    }
    drawn = [
        charts.line_chart(title, ('frame', unit), _lines(content.rollout, quantity), y_range=(0.0, 1.0))
        for quantity, (title, unit) in parts.items()
    ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _loss_charts(losses: Mapping[str, Mapping[str, Mapping[int, float]]]) -> str:
    drawn = (
        charts.line_chart(
            name,
            ('optimizer step', 'loss, logarithmic'),
            {line: sorted(values.items()) for line, values in lines.items()},
            logarithmic=True,
        )
        for name, lines in losses.items()
    )
    return f'<div class="charts">{"".join(drawn)}</div>'


def _prediction_table(result: Result) -> str:
    number, length = result.numbers.get, result.generated
    who = ('model', 'repeat_last_context', 'plain_background')
    last = {name: result.curves[f'psnr_{name}'][-1] for name in who}
    first = {name: result.curves[f'psnr_{name}'][0] for name in who}
    rows = [
        [f'PSNR, mean of {length} frames (dB)', *(_number(number(f'psnr_{name}')) for name in who)],
        ['PSNR, generated frame 1 (dB)', *(_number(first[name]) for name in who)],
        [f'PSNR, generated frame {length} (dB)', *(_number(last[name]) for name in who)],
    ]
    notes = [
        f'Margin over the better baseline: {_number(number("margin_mean"))} dB in the mean, '
        f'{_number(number("margin_last_frame"))} dB at frame {length}.'
    ]
    if 'centre_error_model' in result.curves:
        errors = {name: number(f'centre_error_{name}') for name in who}
        rows.append(['Centre error, mean (pixels)', *(_number(errors[name]) for name in who)])
        ends = [(result.curves.get(f'centre_error_{name}') or [None])[-1] for name in who]
        rows.append([f'Centre error, generated frame {length} (pixels)', *map(_number, ends)])
        notes.append(
            'Centres are compared where an object is more than half visible; '
            f'{_percent(number("found_model"))} of those were found. '
            f'In real frames the same measurement errs by {_number(number("centre_error_real"))} pixels.'
        )
    heads = ['Prediction', *(NAMES[name].capitalize() for name in who)]
    return table(heads, rows) + f'<p class="note">{result.clips} clips. {" ".join(notes)}</p>'


def _rollout_table(result: Result) -> str:
    number = result.numbers.get
    rows = []
    for quantity, text in {
        'colour': 'Colour kept',
        'shape': 'Shape kept',
        'count': 'Count right',
        'moving': 'Moving',
    }.items():
        ends, means = ([number(f'{quantity}_{who}{part}') for who in ('model', 'real')] for part in ('_end', ''))
        rows.append([f'{text}, mean of {result.generated} frames', *map(_percent, means)])
        rows.append([f'{text}, last frames', *map(_percent, ends)])
    rows.append(['Speed (pixels per frame)', *(_number(number(f'speed_{who}')) for who in ('model', 'real'))])
    rows.append(
        ['Bounces per object and 100 frames', *(_number(number(f'bounces_{who}')) for who in ('model', 'real'))]
    )
    note = 'Real videos stay below 100 % where objects hide each other.'
    return table(['Long video', 'Generated', 'Real'], rows) + f'<p class="note">{result.clips} videos. {note}</p>'


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal or a README, without a line break at the end."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (heads, ['---'] * len(heads), *rows))


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """The first entry of a row is its name."""
    head = ''.join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    body = ''.join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{"</td><td>".join(map(html.escape, values))}</td></tr>'
        for name, *values in rows
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}'


def _percent(value: float | None) -> str:
    return '–' if value is None else f'{100 * value:.1f} %'


def settings_part(commands: Sequence[str], settings: Mapping[str, Any]) -> str:
    """How to make the page again, and the configuration to unfold."""
    lines = html.escape('\n'.join(commands))
    configuration = html.escape(json.dumps(settings, indent=2, ensure_ascii=False))
    return (
        f'<h3>To make this page again</h3><pre><code>{lines}</code></pre>'
        f'<details><summary>The whole configuration</summary><pre><code>{configuration}</code></pre></details>'
    )
