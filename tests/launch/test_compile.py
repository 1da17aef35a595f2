"""Programs for a slice that is not there, and how the command says what it found out about them."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import pytest

from launch import console, fit
from magi_jax.config import ConfigError, MagiConfig, TrainConfig
from magi_jax.parallel.chips import CHIPS
from tests.launch.commands import ROOT, assert_one_line, module, run

LIBTPU = importlib.util.find_spec('libtpu')
needs_libtpu = pytest.mark.skipif(LIBTPU is None, reason='libtpu is not installed: pip install -e .[tpu]')
SMALL = ['data.frames=2', 'data.height=16', 'data.width=16', 'data.batch_size=4', 'model.blocks=2', 'model.dropout=0.0']
SMALL += ['sampler.keep_frames=1']
GIB = 2**30
MEMORY = {'arguments': 3 * GIB, 'temporaries': 8 * GIB, 'output': 2 * GIB, 'aliased': 2 * GIB, 'code': 10 * 2**20}
REPORT = {
    'topology': 'v5e:4x4', 'chips': 16, 'mesh': {'data': 1, 'fsdp': 16}, 'target': 'train', 'remat': 'block',
    'hbm_available': CHIPS['v5e'].hbm_bytes, 'clips': 128, 'analytic_flops': {'trunk': 3e14, 'head': 1e14},
    'fits': True, 'hbm_needed': 11 * GIB, 'memory': MEMORY, 'flops': 5e14, 'move_cycles': 10, 'cycles': 40,
    'seconds': {'compute': 2.5, 'hbm': 0.5, 'ici': 0.25, 'cycles': 4.0}, 'unknown_loops': [], 'compile_seconds': 61.0,
    'collectives': {'all-gather': {'count': 40, 'bytes': 3 * GIB}},
}  # fmt: skip


def _compile(environment, *arguments):
    path = os.pathsep.join([str(ROOT), str(Path(LIBTPU.origin).parents[1])])
    command = [*module('launch.compile'), '--config', str(ROOT / 'configs/magi_ucf101.py:runlocal'), *arguments]
    return run([*command, *(f'--config.{field}' for field in SMALL)], {**environment, 'PYTHONPATH': path})


@needs_libtpu
@pytest.mark.slow
def test_the_train_step_of_four_chips(environment, tmp_path):
    """On two of the chips' axes, so that gradients and weights must travel."""
    result = _compile(environment, '--topology', 'v5e:2x2', '--json', str(tmp_path / 'report.json'), *_mesh(fsdp=4))
    assert result.returncode == 0, result.stderr
    assert 'fits: ' in result.stdout and 'ESTIMATE' in result.stdout and not result.stderr
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['fits'] and report['chips'] == 4 and report['unknown_loops'] == []
    assert report['state']['optimizer'] > 1.9 * report['state']['parameters'] > 0
    assert report['memory']['arguments'] >= sum(report['state'].values()) > report['memory']['aliased'] / 4
    assert report['collectives'] and all(kind['bytes'] > 0 for kind in report['collectives'].values())
    assert report['flops'] > 0.5 * sum(report['analytic_flops'].values())
    assert report['cycles'] > report['move_cycles'] > 0


@needs_libtpu
def test_a_frame_of_the_sampler(environment):
    result = _compile(environment, '--topology', 'v5e:1x1', '--target', 'sample', '--frames', '3')
    assert result.returncode == 0, result.stderr
    assert 'sample on v5e:1x1' in result.stdout and 'fits: ' in result.stdout and '1 clips' in result.stdout


LAY_OUT = """
import sys
from configs import magi_kinetics600, magi_ucf101
from launch import fit
from magi_jax.config import from_config_dict
from magi_jax.parallel.mesh import make_mesh

for topology in sys.argv[1:]:
    devices = fit.topology_devices(topology)
    name = 'v5e256' if topology == 'v5e:16x16' else topology.partition(':')[0]
    for shipped in (magi_ucf101, magi_kinetics600):
        config = from_config_dict(shipped.get_config('own' + (name != 'v5e') * f',{name}'))
        mesh = make_mesh(config.mesh, devices)
        print(*mesh.shape.values())
"""


@needs_libtpu
def test_meshes_of_the_shipped_configs_lie_on_their_slices(environment):
    """Also where an axis of the torus must be split: fsdp 4 and sequence 2 of axes of 16."""
    path = os.pathsep.join([str(ROOT), str(Path(LIBTPU.origin).parents[1])])
    topologies = ['v5e:4x4', 'v6e:4x4', 'v5p:2x2x4', 'v5e:16x16']
    result = run([sys.executable, '-c', LAY_OUT, *topologies], {**environment, 'PYTHONPATH': path})
    assert result.stdout.splitlines() == 6 * ['4 4 1 1'] + ['32 4 2 1', '64 4 1 1'], result.stdout + result.stderr


@needs_libtpu
def test_a_slice_that_does_not_exist(environment):
    assert_one_line(_compile(environment, '--topology', 'v5e:3x5'), 'libtpu does not know the slice v5e:3x5')


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jax\[tpu\]==0'):
        fit.topology_devices('v5e:2x2')


def test_a_program_that_fits():
    text = '\n'.join(fit.format_report(REPORT))
    assert 'fits: 11.00 GiB of 15.75 GiB' in text and '= 1.250 x 4e+14 of the model itself' in text
    assert 'all-gather   40 times, 3.00 GiB' in text and 'lower bound at peak rates 2.5 s' in text
    assert '25% of it copies' in text
    assert 'an ESTIMATE, nothing was measured' in text and 'code 10 MiB' in text


def test_a_program_that_does_not_fit_says_what_to_do():
    config, chip = MagiConfig(train=TrainConfig(remat='none')), CHIPS['v5e']
    ways = fit.suggestions(config, chip, REPORT | {'hbm_needed': 40 * GIB})
    assert ways[0].startswith('--config.train.remat=') and ways[1].startswith(
        '--topology v5e:8x8: large enough by arithmetic'
    )
    assert not [way for way in fit.suggestions(config, chip, REPORT | {'target': 'sample'}) if 'remat' in way]
    assert 'no slice of v5e is large enough' in fit.suggestions(config, chip, REPORT | {'hbm_needed': 1e13})[-1]
    failed = {name: REPORT[name] for name in ('topology', 'mesh', 'target', 'remat', 'hbm_available', 'clips')}
    failed |= {'fits': False, 'hbm_needed': 40 * GIB, 'compiler': 'RESOURCE_EXHAUSTED: so much', 'suggestions': ways}
    text = '\n'.join(fit.format_report(failed))
    assert 'DOES NOT FIT: 40.00 GiB of 15.75 GiB' in text and 'RESOURCE_EXHAUSTED: so much' in text and ways[1] in text


def test_compiled_programs_are_kept_unless_told_where(monkeypatch):
    folders = []
    monkeypatch.setattr(jax.config, 'update', lambda name, value: folders.append((name, value)))
    console.keep_compiled_programs()
    assert folders == [('jax_compilation_cache_dir', str(Path.home() / '.cache/magi_jax/compilation'))]
    monkeypatch.setattr(type(jax.config), 'jax_compilation_cache_dir', 'elsewhere', raising=False)
    console.keep_compiled_programs()
    assert len(folders) == 1


def _mesh(**sizes):
    return [f'--config.mesh.{axis}={size}' for axis, size in ({'data': 1} | sizes).items()]
