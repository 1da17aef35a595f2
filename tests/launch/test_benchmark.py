"""The benchmark command on toys: what it prints and writes; what it says when it cannot."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.launch.commands import ROOT, assert_one_line, module, run
from tests.launch.forked import run_forked

TORCH = importlib.util.find_spec('torch')
SMALL = ['data.frames=2', 'data.height=16', 'data.width=16', 'data.batch_size=2', 'model.blocks=1']
SMALL += ['model.head.blocks=1', 'sampler.keep_frames=1', 'optim.name=adamw']


def _benchmark(environment, *arguments, run=run):
    path = os.pathsep.join([str(ROOT), *([str(Path(TORCH.origin).parents[1])] if TORCH else [])])
    command = [*module('launch.benchmark'), *arguments, '--config', str(ROOT / 'configs/quickstart.py:runlocal')]
    return run([*command, *(f'--config.{field}' for field in SMALL)], {**environment, 'PYTHONPATH': path})


def _check(result, path, names):
    assert result.returncode == 0, result.stderr
    written = json.loads(path.read_text())
    assert list(written['implementations']) == names and written['flops'] > 0 and written['commit']
    assert written['command'].startswith('python -m launch.benchmark --task=')
    for implementation in written['implementations'].values():
        assert len(implementation['turns']) == 2 and all(turn['wall'] > 0 for turn in implementation['turns'])
        assert implementation['matmul_flops']['wall'] > 1e8 and implementation['first']['wall'] > 0
    for name in names:
        assert f'| {name} | ' in result.stdout
    return written


def test_jax_alone(environment, tmp_path):
    path = tmp_path / 'deep' / 'result.json'
    result = _benchmark(environment, 'sample', '--rounds', '2', '--seconds', '0', '--clips', '3', '--json', str(path))
    written = _check(result, path, ['JAX'])
    assert written['clips'] == 3 and written['frames'] == 2 and 'a frame' in result.stdout


@pytest.mark.skipif(TORCH is None, reason='the torch extra is not installed')
@pytest.mark.parametrize('task', ['train', 'sample'])
def test_against_pytorch(environment, tmp_path, task):
    path = tmp_path / 'result.json'
    result = _benchmark(environment, task, '--against', 'torch', '--rounds', '2', '--seconds', '0', '--json', str(path))
    written = _check(result, path, ['JAX', 'PyTorch'])
    differences = written['implementations']['PyTorch']['differences']
    assert differences and all(value <= written['tolerances'][name] for name, value in differences.items())


def test_mistakes_are_one_line(environment):
    assert_one_line(
        _benchmark(environment, 'train', '--against', 'flax', run=run_forked), 'there are torch, torch_compiled'
    )
    assert_one_line(_benchmark(environment, 'tune', run=run_forked), 'train|sample')
