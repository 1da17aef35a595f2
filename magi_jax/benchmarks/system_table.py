"""The table of `launch.compare_systems`: one column for each system."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magi_jax.evaluation.report import markdown_table

# 'numbers' of bouncing_shapes, 'frechet' of shapes_five_frame, 'parameters', 'step', 'frame'
Result = Mapping[str, Any]

NAMES = {'magi': 'MAGI', 'videomar': 'VideoMAR'}
ROWS: dict[str, Callable[[Result], str]] = {
    'parameters': lambda r: f'{r["parameters"]:,}',
    'PSNR of 11 predicted frames': lambda r: f'{r["numbers"]["psnr_model"]:.2f} dB',
    'Fréchet distance of five-frame predictions': lambda r: f'{r["frechet"]["mean"]:.1f} ± {r["frechet"]["std"]:.1f}',
    'real-vs-real baseline': lambda r: f'{r["frechet"]["floor"]:.1f}',
    'objects found by their colour at the end of 96 frames': lambda r: f'{r["numbers"]["colour_model_end"]:.2f}',
    'objects of the right shape': lambda r: f'{r["numbers"]["shape_model_end"]:.2f}',
    'frames with the right count': lambda r: f'{r["numbers"]["count_model_end"]:.2f}',
    'objects still moving': lambda r: f'{r["numbers"]["moving_model_end"]:.2f}',
    'training step': lambda r: f'{1000 * r["step"]:.0f} ms',
    'sampled frame, batch of a training step': lambda r: f'{1000 * r["frame"]:.0f} ms',
}


def format_table(results: Mapping[str, Result]) -> str:
    """Return the Markdown table of {system: result}."""
    rows = [[name, *(cell(result) for result in results.values())] for name, cell in ROWS.items()]
    return markdown_table(['', *(NAMES[system] for system in results)], rows)


def read_results(folder: Path) -> dict[str, Any]:
    """Return the numbers of a system from the metrics.json of its protocols."""
    prediction, rollout = json.loads((folder / 'bouncing_shapes/metrics.json').read_text())
    score = json.loads((folder / 'shapes_five_frame/metrics.json').read_text())
    numbers = prediction['numbers'] | rollout['numbers']
    return {'numbers': numbers, 'frechet': score['frechet']}
