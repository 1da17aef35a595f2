"""launch.evaluate --protocol captions_text: which runs it takes, and one real evaluation."""

import dataclasses
import json
import types

import pytest

import magi_jax
from launch.evaluations import Call
from launch.text_evaluation import measure_text_steering
from magi_jax.config import ConfigError, TextConfig, TokenizerConfig
from magi_jax.evaluation.protocols import find_protocol
from tests.data import tiny_captions
from tests.launch.commands import assert_one_line, module
from tests.launch.forked import run_forked
from tests.pretrained.tiny_run import CONFIG, VIDEOMAR, make_run

NEEDS = 'protocol captions_text needs a run on bouncing_objects/captions with text: train configs/quickstart_videomar'


def test_a_run_of_magi_is_refused_in_one_line(environment, tmp_path):
    make_run(tmp_path / 'run', CONFIG)
    command = [*module('launch.evaluate'), f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "out"}']
    assert_one_line(run_forked([*command, '--protocol=captions_text'], environment), NEEDS)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'change',
    [{'text': TextConfig()}, {'data': dataclasses.replace(VIDEOMAR.data, source='bouncing_objects/shapes')}],
)
def test_other_data_and_a_model_without_text_are_refused(monkeypatch, tmp_path, change):
    config = dataclasses.replace(VIDEOMAR, **change)
    monkeypatch.setattr(magi_jax, 'load', lambda workdir: types.SimpleNamespace(config=config))
    with pytest.raises(ConfigError, match=NEEDS):
        measure_text_steering(Call('run', tmp_path, 'captions_text', 0), find_protocol('captions_text'))


@pytest.mark.slow
def test_a_small_evaluation(environment, tmp_path):
    data = tiny_captions.build(tmp_path / 'data', train=1, validation=1, test=12)
    config = dataclasses.replace(
        VIDEOMAR,
        data=dataclasses.replace(VIDEOMAR.data, path=data.path, height=64, width=64),
        tokenizer=TokenizerConfig(kind='identity', channels=192, downsample=8),
    )
    make_run(tmp_path / 'run', config)
    command = [*module('launch.evaluate'), f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "out"}']
    command += ['--protocol=captions_text', '--seeds=2']
    too_few = 'clip 0 has no clip with another colour, shape and direction: evaluate more clips'
    assert_one_line(run_forked([*command, '--clips=1'], environment), too_few)
    result = run_forked([*command, '--clips=12'], environment)
    assert result.returncode == 0, result.stderr
    assert '| direction |' in result.stdout and '| 100.0 % | 80 % |' in result.stdout
    measured = json.loads((tmp_path / 'out/metrics.json').read_text())
    steering = measured['text_steering']
    assert measured['protocol'] == 'captions_text --clips 12 --seeds 2' and steering['clips'] == 12
    assert steering['real'] == {'colour': 1.0, 'shape': 1.0, 'direction': 1.0}
    for kind in ('own', 'swapped'):  # random weights draw no objects
        assert all(len(values) == 2 and max(values) < 0.5 for values in steering[kind].values())
