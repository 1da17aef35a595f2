"""The grid of sampler settings that launch.quality measures, and the table of results.

A row is {'sampler': fields of SamplerConfig, 'by_seed': {measure: one value for each seed}, 'seconds_a_frame': float,
...}. The first row is the reference setting.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from magi_jax.config import SamplerConfig
from magi_jax.evaluation.report import markdown_table

MEASURES = ('psnr', 'colour', 'shape', 'count', 'moving')  # higher is better
TOLERATED_RATIO = 0.95  # fraction of the reference that a setting must keep in every measure


def settings(config: SamplerConfig, tokens: int) -> Iterator[SamplerConfig]:
    """Return the reference setting, which reveals tokens one by one, and the settings compared with it.

    The list varies mask steps, then denoise steps and temperatures at a quarter of the mask steps, then the solver of
    the reference.
    """
    reference = dataclasses.replace(config, mask_steps=tokens, denoise_steps=100, solver='ancestral')
    quick = {'ancestral': 10, 'ddim': 5, 'dpm++': 5}
    yield reference
    quarter = dataclasses.replace(reference, mask_steps=max(1, tokens // 4))
    for part, (solver, count) in itertools.product((4, 2, 8, tokens), quick.items()):
        yield dataclasses.replace(reference, mask_steps=max(1, tokens // part), solver=solver, denoise_steps=count)
    for solver, temperature in itertools.product(('ancestral', 'dpm++'), (1.0, 0.0)):
        yield dataclasses.replace(quarter, solver=solver, denoise_steps=quick[solver], temperature=temperature)
    yield dataclasses.replace(quarter, denoise_steps=10, temperature=0.4, temperature_decay=1.0)
    for solver, counts in {'dpm++': (3, 10, 25), 'ddim': (3, 10, 25), 'ancestral': (5, 25)}.items():
        for count in counts:
            yield dataclasses.replace(quarter, solver=solver, denoise_steps=count)
    for solver, count in [('ancestral', 25), ('ancestral', 10), ('ddim', 10), ('dpm++', 10)]:
        yield dataclasses.replace(reference, solver=solver, denoise_steps=count)


def mean(row: dict[str, Any], name: str) -> float:
    """Return the mean of a measure over seeds."""
    return float(np.mean(row['by_seed'][name]))


def fast_preset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest row that keeps KEPT of the reference in every measure, or what its worse seed reaches."""
    least = {name: min(TOLERATED_RATIO * mean(rows[0], name), *rows[0]['by_seed'][name]) for name in MEASURES}
    good = (row for row in rows if all(mean(row, name) >= least[name] for name in MEASURES))
    return min(good, key=lambda row: row['seconds_a_frame'])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table: the reference first, the fast preset in bold."""
    head = ['solver', 'mask', 'denoise', 'temperature', 'PSNR dB', *MEASURES[1:], 'ms a frame']
    marks = ['**' if row is fast_preset(rows) else '' for row in rows]
    return markdown_table(head, [[f'{mark}{cell}{mark}' for cell in cells(row)] for mark, row in zip(marks, rows)])


def cells(row: dict[str, Any]) -> list[str]:
    """Return the settings of a row and its means over seeds, with half the difference of the two seeds."""
    sampler = row['sampler']
    decay = f' + {sampler["temperature_decay"]:g} x 10^-n' if sampler['temperature_decay'] else ''
    found = [sampler['solver'], str(sampler['mask_steps']), str(sampler['denoise_steps'])]
    found.append(f'{sampler["temperature"]:g}{decay}')
    for name in MEASURES:
        digits = 2 if name == 'psnr' else 3
        found.append(f'{mean(row, name):.{digits}f} ± {np.ptp(row["by_seed"][name]) / 2:.{digits}f}')
    return [*found, f'{1000 * row["seconds_a_frame"]:.0f}']
