"""The grid of sampler settings and its table, on made-up measurements."""

import dataclasses

from magi_jax.benchmarks import quality
from magi_jax.config import MagiSamplerConfig


def _row(psnr, colour, seconds, **sampler):
    values = {name: [0.5, 0.7] for name in quality.MEASURES} | {'psnr': [psnr, psnr + 0.2], 'colour': [colour, colour]}
    fields = dataclasses.asdict(MagiSamplerConfig(**sampler))
    return {'sampler': fields, 'by_seed': values, 'seconds_a_frame': seconds}


def test_the_grid_begins_with_the_reference_and_repeats_nothing():
    grid = list(quality.settings(MagiSamplerConfig(temperature=0.5, mask_steps=8), tokens=16))
    reference = dataclasses.replace(MagiSamplerConfig(temperature=0.5), mask_steps=16, denoise_steps=100)
    assert grid[0] == reference and len(set(grid)) == len(grid)
    assert {sampler.solver for sampler in grid} == {'ancestral', 'ddim', 'dpm++'}
    assert all(sampler.mask_steps <= 16 and sampler.denoise_steps <= 100 for sampler in grid)


def test_the_fast_preset_is_the_fastest_that_keeps_every_measure():
    reference = _row(20.0, 0.9, 1.0)
    rows = [
        reference,
        _row(19.2, 0.88, 0.3, solver='ddim'),
        _row(19.2, 0.80, 0.1, solver='dpm++'),
        _row(18.7, 0.90, 0.2),
    ]
    assert quality.fast_preset(rows) is rows[1]
    assert quality.fast_preset([*rows[2:], reference]) is rows[2]  # the first is what the others are held against
    reference['by_seed']['colour'] = [1.0, 0.79]  # seeds make more of a difference than that
    assert quality.fast_preset(rows) is rows[2]


def test_the_table_tells_settings_means_and_what_is_noise():
    rows = [_row(20.0, 0.9, 1.0), _row(19.2, 0.9, 0.0304, solver='ddim', temperature=0.9, temperature_decay=1.0)]
    header, _, first, second = quality.table(rows).splitlines()
    assert header.startswith('| solver | mask | denoise | temperature | PSNR dB | colour |')
    assert header.endswith('| moving | ms a frame |')
    assert first.startswith('| ancestral | 64 | 100 | 1 | 20.10 ± 0.10 | 0.900 ± 0.000 | 0.600 ± 0.100 |')
    assert second.startswith('| **ddim** |') and '0.9 + 1 x 10^-n' in second and '**30**' in second
