"""Formats the result of a benchmark as a Markdown table."""

import statistics
from typing import Any


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Summarise each implementation: medians, extremes, FLOP/s, and the ratio of its time to that of the first one.

    Ratios are taken within each round, where machine conditions are equal. On a CPU the ratio uses CPU seconds, because
    wall seconds include the work of other programs.
    """
    implementations = result['implementations']
    kind = 'cpu' if any(c['kind'] == 'cpu' for c in implementations.values()) else 'wall'
    peak = max(c['matmul_flops'][kind] for c in implementations.values())
    first, told = next(iter(implementations.values())), {}
    for name, implementation in implementations.items():
        seconds = [turn[kind] for turn in implementation['turns']]
        ratios = [own / turn[kind] for own, turn in zip(seconds, first['turns'])]
        rate = result['flops'] / statistics.median(seconds)
        told[name] = {
            'seconds': statistics.median(seconds), 'fastest': min(seconds), 'slowest': max(seconds),
            'wall': statistics.median(turn['wall'] for turn in implementation['turns']),
            'flops': rate, 'share': rate / peak, 'matmul': peak,
            'ratio': statistics.median(ratios), 'ratio_low': min(ratios), 'ratio_high': max(ratios),
        }  # fmt: skip
    return told


def markdown(result: dict[str, Any]) -> str:
    """Return title, table and notes as Markdown, without a line break at the end."""
    implementations, told = result['implementations'], summary(result)
    on_cpu = any(c['kind'] == 'cpu' for c in implementations.values())
    calls = 1 if result['task'] == 'train' else result['frames']
    unit, made = ('step', 'clips') if result['task'] == 'train' else ('frame', 'frames')
    clock = 'CPU' if on_cpu else 'wall'
    lines = [
        f'| {result["title"]} | {clock} ms a {unit}, median (range) | wall ms | JAX / this, median (range) | {made}/s |'
        f' GFLOP/s | of matmul peak | memory MiB | first call {clock} s |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name, implementation in implementations.items():
        row = told[name]
        ms = [1e3 * row[key] / calls for key in ('seconds', 'fastest', 'slowest', 'wall')]
        memory = (
            implementation['resident_bytes']
            if implementation['device_bytes'] is None
            else implementation['device_bytes']
        )
        inverse = [1 / row[key] for key in ('ratio', 'ratio_high', 'ratio_low')]
        lines.append(
            f'| {name} | {ms[0]:.4g} ({ms[1]:.4g}-{ms[2]:.4g}) | {ms[3]:.4g} | '
            + ('1' if name == next(iter(implementations)) else f'{inverse[0]:.2f} ({inverse[1]:.2f}-{inverse[2]:.2f})')
            + f' | {result["clips"] * calls / row["seconds"]:.4g} | {row["flops"] / 1e9:.4g} | {row["share"]:.0%} |'
            f' {memory / 2**20:.0f} | {implementation["first"]["cpu" if on_cpu else "wall"]:.1f} |'
        )
    return '\n'.join(lines)
