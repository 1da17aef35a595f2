"""Line charts as inline SVG, drawn by matplotlib. Text and grid take the page's colour, so they suit light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT, LEGEND_ROW = 480, 245, 20  # SVG units; each row of the legend adds to the height
BLUE, GREY, ORANGE, PURPLE, TEAL = '#1f6feb', '#7a8290', '#d9730d', '#8a63d2', '#12847b'  # legible in light and dark
STYLES = [(BLUE, '-'), (GREY, '--'), (ORANGE, '-'), (PURPLE, ':'), (TEAL, '-')]
STYLES += [(ORANGE, '--'), (PURPLE, '--'), (TEAL, '--')]
# Text stays text, and equal charts are equal files.
SETTINGS = {'svg.fonttype': 'none', 'svg.hashsalt': 'magi_jax', 'font.size': 13, 'grid.alpha': 0.15}
# Parts that serve a separate SVG file. Inside a page they would style the page, repeat identifiers or fix the size.
OF_A_FILE = re.compile(
    r'<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>| (xmlns(:xlink)?|version)="[^"]*"'
    r'|xlink:| (width|height)="[\d.]+pt"| id="[\w.]+_\d+"| font-family: [^;"]*;',
    re.S,
)

Points = Sequence[tuple[float, float | None]]


class Chart(NamedTuple):
    """A chart for the macro `charts` of the templates."""

    title: str
    unit: str
    svg: str  # empty if there is no point to show


def line_chart(
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Points],
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Chart:
    """Draw lines over whole numbers, such as frames or steps.

    Args:
      title: title of the chart.
      axes: labels of x and y.
      lines: name -> points (x, y), x ascending; y = None leaves a gap. The position of a line decides its style, and
        a line without points is left out.
      y_range: limits of the y axis; None: the range of the values.
      logarithmic: whether the y axis is logarithmic; it takes positive values only.

    Raises:
      ValueError: a value is not finite, or not positive on a logarithmic axis, or a chart cannot show so many lines.
    """
    if len(lines) > len(STYLES):
        raise ValueError(
            f'{len(lines)} lines requested, but a chart shows at most {len(STYLES)} distinguishable lines: '
            'plot fewer lines'
        )
    for name, points in lines.items():
        for x, y in points:
            if y is not None and not (np.isfinite(y) and (y > 0 or not logarithmic)):
                raise ValueError(f'line {name!r} has the value {y} at {x}, which the chart cannot show')
    if all(y is None for points in lines.values() for _, y in points):
        return Chart(title, axes[1], '')
    rows = -(-sum(map(bool, lines.values())) // 2)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure((WIDTH / 72, (HEIGHT + rows * LEGEND_ROW) / 72), layout='constrained')
        plot = figure.subplots()
        # The last line is drawn first: the chart is about the first one.
        for rank, (line, style) in enumerate(zip(lines.items(), STYLES)):
            _draw_line(plot, *line, *style, zorder=3 - rank / 10)
        plot.set_xlabel(axes[0])
        plot.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
        plot.xaxis.set_major_formatter('{x:,.0f}')
        plot.margins(x=0)
        plot.set_ylim(y_range)
        if logarithmic:
            plot.set_yscale('log')
            plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            plot.yaxis.set_major_formatter('{x:g}')
            plot.minorticks_off()
        plot.grid(axis='y', color='black', clip_on=False)
        plot.tick_params(bottom=False, left=False)
        plot.spines[['left', 'top', 'right']].set_visible(False)
        figure.legend(loc='outside upper left', ncols=2, frameon=False)
        return Chart(title, axes[1], _inline_svg(figure, title))


def _draw_line(plot: Axes, name: str, points: Points, colour: str, dashes: str, zorder: float) -> None:
    """Draw a line, and a dot for each point between two gaps."""
    if not points:
        return
    x, y = np.array(points, float).T  # None becomes NaN, a gap
    options = {'color': colour, 'clip_on': False, 'zorder': zorder}
    plot.plot(x, y, dashes, label=name, linewidth=2, **options)
    known = np.pad(np.isfinite(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():
        plot.plot(x[alone], y[alone], '.', markersize=8, **options)


def _inline_svg(figure: Figure, title: str) -> str:
    figure.patch.set_visible(False)
    figure.axes[0].patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Title': title, 'Date': None})
    svg = file.getvalue()
    return OF_A_FILE.sub('', svg[svg.index('<svg') :]).replace('#000000', 'currentColor')
