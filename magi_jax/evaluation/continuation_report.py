"""The page of the protocol `continuation`: playing pairs, and PSNR and SSIM by frame beside a repeated last frame."""

from collections.abc import Mapping, Sequence
from typing import Any

from magi_jax.evaluation import charts, report
from magi_jax.evaluation.continuation import Continuation, ExampleClips, MetricByFrame

UNITS = {'psnr': ('PSNR', ' dB', 2), 'ssim': ('SSIM', '', 3)}  # name, unit, decimals


def render_continuation(
    result: Continuation,
    shown: ExampleClips,
    facts: Mapping[str, str],
    commands: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """Render the page as self-contained HTML.

    Args:
      result: result of `score_continuation`.
      shown: examples of the same.
      facts: facts about the run, name -> value.
      commands: commands that make the page again.
      settings: config of the run.

    Raises:
      ValueError: a number is not finite.
    """
    protocol, real = result.clips.protocol, result.clips
    summary = (
        f'{_counted(len(real), "real clip")} of the split {real.split!r}: {_counted(protocol.context, "frame")} given, '
        f'the next {_counted(protocol.frames - protocol.context, "frame")} generated and compared with the true ones.'
    )
    return report.render_page(
        'continuation_report',
        'Continuation of real clips',
        summary,
        facts,
        result.to_json(),
        sentences=[*sentences(result), *real.notes],
        shown=shown,
        context=protocol.context,
        charts=_charts(result),
        table=table_rows(result),
        commands=commands,
        settings=settings,
    )


def sentences(result: Continuation) -> list[str]:
    """Describe the result in one sentence for each metric."""
    return [_sentence(name, values) for name, values in result.metrics.items()]


def table_rows(result: Continuation) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: one row for the mean and one for each generated frame."""
    heads = ['Generated frame']
    rows = [['mean'], *([str(number)] for number in result.to_json()['frames'])]
    for name, metric in result.metrics.items():
        label, unit, _ = UNITS[name]
        heads += [f'{label}{unit and " (dB)"}', 'repeat last frame']
        means, stds = metric.by_frame
        values = [(metric.mean, metric.std, metric.repeated.mean()), *zip(means, stds, metric.repeated)]
        for row, (mean, std, repeated) in zip(rows, values, strict=True):
            row += [_number(name, mean, std, metric), _number(name, repeated)]
    return heads, rows


def _sentence(name: str, values: MetricByFrame) -> str:
    label, unit, _ = UNITS[name]
    repeated = float(values.repeated.mean())
    verdict = 'better than' if values.mean > repeated else 'worse than' if values.mean < repeated else 'as good as'
    spread = f' (over {len(values.generated)} seeds)' if len(values.generated) > 1 else ''
    return (
        f'{label} (higher is better): generated frames {_number(name, values.mean, values.std, values)}{unit}{spread}, '
        f'repeated last frame {_number(name, repeated)}{unit}. The model is {verdict} a still picture.'
    )


def _number(name: str, value: float, std: float = 0.0, values: MetricByFrame | None = None) -> str:
    decimals = UNITS[name][2]
    spread = f' ± {std:.{decimals}f}' if values is not None and len(values.generated) > 1 else ''
    return f'{value:.{decimals}f}{spread}'


def _charts(result: Continuation) -> list[charts.Chart]:
    drawn, start = [], result.clips.protocol.context + 1
    for name, values in result.metrics.items():
        label, unit, _ = UNITS[name]
        lines = {
            'generated': list(enumerate(values.by_frame[0].tolist(), start)),
            'repeat last frame': list(enumerate(values.repeated.tolist(), start)),
        }
        drawn.append(charts.line_chart(label, ('frame', f'{unit.strip()}{unit and ", "}higher is better'), lines))
    return drawn


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'
