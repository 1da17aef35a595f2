"""The grid of sampler settings that launch.quality measures, and the table of what it found.

A row is {'sampler': fields of SamplerConfig, 'by_seed': {measure: a value a seed}, 'seconds_a_frame': float, ...}; the
first one is of the reference setting.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from magi_jax.config import SamplerConfig

MEASURES = ('psnr', 'colour', 'shape', 'count', 'moving')  # all the higher the better
KEPT = 0.95  # part of the reference's value that a setting must keep in every measure to count as good


def settings(config: SamplerConfig, tokens: int) -> Iterator[SamplerConfig]:
    """The reference, which reveals the tokens one by one, and what may replace it; each setting once."""
    reference = dataclasses.replace(config, mask_steps=tokens, denoise_steps=100, solver='ancestral')
    half, quarter, eighth = (max(1, tokens // part) for part in (2, 4, 8))
    yield reference
    steps = {'ancestral': (25, 10, 5), 'ddim': (25, 10, 5, 3), 'dpm++': (25, 10, 5, 3)}
    for solver, counts in steps.items():
        for count in counts:
            yield dataclasses.replace(reference, solver=solver, denoise_steps=count)
    for (solver, count), mask_steps in itertools.product(
        [('ancestral', 10), ('ddim', 5), ('dpm++', 5), ('dpm++', 3)], (half, quarter, eighth, 1)
    ):
        yield dataclasses.replace(reference, solver=solver, denoise_steps=count, mask_steps=mask_steps)
    for solver, temperature in itertools.product(('ancestral', 'dpm++'), (1.0, 0.0)):
        changes = {'denoise_steps': 10, 'mask_steps': half, 'temperature': temperature}
        yield dataclasses.replace(reference, solver=solver, **changes)
    yield dataclasses.replace(reference, denoise_steps=10, mask_steps=half, temperature=0.4, temperature_decay=1.0)


def mean(row: dict[str, Any], name: str) -> float:
    """Over the seeds."""
    return float(np.mean(row['by_seed'][name]))


def fast_preset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest row that keeps KEPT of the first row's value in every measure."""
    good = (row for row in rows if all(mean(row, name) >= KEPT * mean(rows[0], name) for name in MEASURES))
    return min(good, key=lambda row: row['seconds_a_frame'])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the reference first, the fast preset in bold."""
    head = ['solver', 'mask', 'denoise', 'temperature', 'PSNR dB', *MEASURES[1:], 'ms a frame']
    lines = [head, ['---'] * len(head)]
    for row in rows:
        mark = '**' if row is fast_preset(rows) else ''
        lines.append([f'{mark}{cell}{mark}' for cell in cells(row)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def cells(row: dict[str, Any]) -> list[str]:
    """A row's settings and its means over the seeds, with half the difference of the two."""
    sampler = row['sampler']
    decay = f' + {sampler["temperature_decay"]:g} x 10^-n' if sampler['temperature_decay'] else ''
    found = [sampler['solver'], str(sampler['mask_steps']), str(sampler['denoise_steps'])]
    found.append(f'{sampler["temperature"]:g}{decay}')
    for name in MEASURES:
        digits = 2 if name == 'psnr' else 3
        found.append(f'{mean(row, name):.{digits}f} ± {np.ptp(row["by_seed"][name]) / 2:.{digits}f}')
    return [*found, f'{1000 * row["seconds_a_frame"]:.0f}']
