"""Line charts as inline SVG: they take the page's colours, so one file serves light and dark."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 14, 44  # room for ticks and labels
MAX_POINTS = 240
MAX_LINES = 8  # that report_style has a look for

Points = Sequence[tuple[float, float | None]]


def line_chart(
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Points],
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """An HTML figure.

    Args:
      title: what is shown.
      axes: labels of x and y.
      lines: name -> points (x, y), x ascending; y = None leaves a gap. Line i < MAX_LINES has the CSS class `line<i>`;
        one without points only takes its place in that order. Of more than MAX_POINTS points, groups are averaged.
      y_range: of the y axis; None: what the values span.
      logarithmic: y axis, for positive values only.

    Raises:
      ValueError: a value is not finite, or a logarithmic one not positive; the message names the line. Or too many.
    """
    if len(lines) > MAX_LINES:
        raise ValueError(f'{len(lines)} lines are more than the {MAX_LINES} that a chart can tell apart')
    lines = {name: _thinned(name, points, logarithmic) for name, points in lines.items()}
    known = [(x, y) for points in lines.values() for x, y in points if y is not None]
    if not known:
        return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption><p>Nothing to show.</p></figure>'
    x_low, x_high = _span([x for x, _ in known])
    y_low, y_high = y_range or _span([y for _, y in known], logarithmic)
    bend = math.log if logarithmic else float

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (bend(y) - bend(y_low)) / (bend(y_high) - bend(y_low))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _ticks(y_low, y_high, logarithmic):
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high, False):
        if tick % 1:  # x counts frames or steps
            continue
        x, y = place(tick, y_low)
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 19:.1f}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(axes[0])}</text>')
    # The last line is drawn first: the first one is what the chart is about.
    for number, points in reversed(list(enumerate(lines.values()))):
        parts.append(f'<path class="line line{number}" d="{_path(points, place)}"/>')
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)} <small>{html.escape(axes[1])}</small></figcaption>'
        f'<div class="legend">{_legend(lines)}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg></figure>'
    )


def _legend(lines: Mapping[str, Points]) -> str:
    return ''.join(
        f'<span><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line line{i}" d="M1 4H25"/></svg>'
        f'{html.escape(name)}</span>'
        for i, (name, points) in enumerate(lines.items())
        if points
    )


def _thinned(name: str, points: Points, logarithmic: bool) -> list[tuple[float, float | None]]:
    for x, y in points:
        if y is not None and not (math.isfinite(y) and (y > 0 or not logarithmic)):
            raise ValueError(f'line {name!r} has the value {y} at {x}, which the chart cannot show')
    group = math.ceil(len(points) / MAX_POINTS)
    if group <= 1:
        return list(points)
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return [(part[-1][0], _average([y for _, y in part if y is not None])) for part in groups]


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _span(values: Sequence[float], logarithmic: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.1, high * 1.1
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Four to seven round numbers in [low, high]."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) > 6:
            inside = [tick for tick in inside if math.log10(tick) % 1 < 1e-9 or math.log10(tick) % 1 > 1 - 1e-9]
        if len(inside) > 1:
            return inside
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f'{value / 1000:g}k' if abs(value) >= 10_000 else f'{value:g}'


def _path(points: Sequence[tuple[float, float | None]], place: Callable[[float, float], tuple[float, float]]) -> str:
    """Commands of an SVG path: a piece between gaps is a line, a point alone a dot (`h0`, with round ends)."""
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            across, down = place(x, y)
            pieces[-1].append(f'{across:.1f} {down:.1f}')
    return ''.join(f'M{"L".join(piece)}{"h0" if len(piece) == 1 else ""}' for piece in pieces if piece)
