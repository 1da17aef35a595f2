"""The table of a study says what its runs scored."""

import numpy as np
import pytest

from magi_jax.evaluation import charts, report, study


def _course(values):
    return {str(frame): {'mean': value, 'floor': 2.5} for frame, value in values.items()}


def _result(name, mean, curve, stills):
    frechet = {'mean': mean, 'floor': 1.5}
    return {'protocol': name, 'frechet': frechet, 'curve': _course(curve), 'stills': _course(stills)}


def _variant(variants, *means):
    runs = [
        {
            study.CLIPS: _result('short', mean, {2: 1.0}, {1: 0.0, 16: 2 * mean}),
            study.LONG: _result('long', mean, {16: 4 * mean, 32: 5.0, 48: 6.0, 64: 7.0}, {16: 1.0, 32: 2.0}),
        }
        for mean in means
    ]
    return study.Variant(study.describe(variants), runs)


@pytest.fixture
def variants():
    return {'': _variant('', 6.0, 8.0), 'masked': _variant('masked', 9.0, 11.0), 'no_noise': _variant('no_noise', 3.0)}


def test_variants_in_words():
    assert study.describe('') == 'CTF, intervals, noise'
    assert study.describe('masked,one_interval,no_noise') == 'MTF'


def test_rows_are_means_and_deviations_over_seeds(variants):
    head, rows = study.cells(list(variants.values()))
    assert head[2:] == ['clips', 'last frame alone', 'to frame 16', 'to frame 32', 'to frame 64']
    assert rows[0] == ['CTF, intervals, noise', '2', '7.0 ± 1.4', '14.0 ± 2.8', '28.0 ± 5.7', '5.0 ± 0.0', '7.0 ± 0.0']
    assert study.cells([_variant('', 1000.0, 1300.2)])[1][0][2] == '1,150 ± 212'
    assert rows[2] == ['CTF, intervals', '1', '3.0', '6.0', '12.0', '5.0', '7.0']
    assert rows[3] == ['real clips', '', '1.5', '2.5', '2.5', '2.5', '2.5']
    lines = report.markdown_table(head, rows).splitlines()
    assert len(lines) == 6 and len({line.count('|') for line in lines}) == 1


def test_gain_is_relative_to_masked_teacher_forcing(variants):
    _, clips, alone = study.sentences(variants)
    assert clips == 'Clips: CTF 7.0 ± 1.4 against MTF 10.0 ± 1.4, 30 % lower.'
    assert alone == 'Last frame alone: CTF 14.0 ± 2.8 against MTF 20.0 ± 2.8, 30 % lower.'
    assert '100 % higher' in study.sentences(variants | {'masked': _variant('masked', 3.0, 4.0)})[1]
    assert len(study.sentences({'': variants['']})) == 1


def test_page_holds_the_table_and_a_line_for_each_variant(variants):
    page = study.render('Title', variants, {'runs': '5'})
    for text in ('7.0 ± 1.4', 'MTF, intervals, noise', 'to frame 64', '30 % lower'):
        assert text in page
    assert page.count(f'fill: none; stroke: {charts.ORANGE}') == 6  # third line, 3 charts with legends
    with pytest.raises(ValueError):
        study.render('Title', {'': _variant('', np.nan)}, {})
