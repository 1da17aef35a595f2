"""launch.export, and the commands that read what it writes."""

import dataclasses

import pytest

from magi_jax.config import TokenizerConfig
from tests.launch.commands import assert_one_line, module, run
from tests.launch.forked import run_forked
from tests.pretrained.tiny_run import CONFIG, STEP, make_run

SHAPES = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(CONFIG.data, path='', height=64, width=64, max_interval=1),
    tokenizer=TokenizerConfig(kind='identity', channels=192, downsample=8),
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('export') / 'run'
    make_run(folder, SHAPES)
    return folder


@pytest.fixture(scope='module')
def exported(workdir, environment):
    out = workdir.parent / 'shared'
    command = [*module('launch.export'), '--workdir', str(workdir), '--out', str(out), '--license', 'mit']
    result = run_forked(command, environment)
    assert result.returncode == 0, result.stderr
    assert f'step {STEP} of {workdir} written to {out}' in result.stdout
    return out


def test_weights_are_written(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {'README.md', 'config.json', 'manifest.json', 'metrics.jsonl', 'model.safetensors'}
    assert 'license: "mit"' in (exported / 'README.md').read_text()


def test_mistakes_are_one_line(workdir, exported, environment, tmp_path):
    command = [*module('launch.export'), '--workdir', str(workdir), '--out']
    assert_one_line(run_forked([*command, str(workdir)], environment), str(workdir), 'give another folder')
    missing = str(tmp_path / 'none.json')
    result = run_forked([*command, str(tmp_path / 'out'), '--metrics', missing], environment)
    assert_one_line(result, missing)
    assert not (tmp_path / 'out').exists()
    content = (exported / 'model.safetensors').read_bytes()
    try:
        (exported / 'model.safetensors').write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        sample = [*module('launch.sample'), '--workdir', str(exported), '--out', str(tmp_path / 'videos')]
        assert_one_line(run_forked(sample, environment), 'model.safetensors differs from the saved file')
    finally:
        (exported / 'model.safetensors').write_bytes(content)


@pytest.mark.slow
def test_exported_weights_are_sampled_and_evaluated_as_the_run(workdir, exported, environment, tmp_path):
    videos = []
    for folder in (workdir, exported):
        out = tmp_path / folder.name
        command = [*module('launch.sample'), '--workdir', str(folder), '--frames', '6', '--batch', '2', '--num', '2']
        result = run([*command, '--out', str(out)], environment)
        assert result.returncode == 0, result.stderr
        videos.append([path.read_bytes() for path in sorted(out.glob('*.mp4'))])
    assert videos[0] == videos[1] and len(videos[0]) == 2
    command = [*module('launch.evaluate'), '--workdir', str(exported), '--protocol', 'bouncing_shapes_runlocal']
    result = run([*command, '--out', str(tmp_path / 'report')], environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'report' / 'report.html').exists()
