"""What stands around the two frameworks: who takes part, when outputs agree, what the table says."""

import importlib.util
import time

import numpy as np
import pytest

from magi_jax.benchmarks import problem, resources, side_by_side, table
from magi_jax.config import ConfigError, DataConfig, MagiConfig, TokenizerConfig

CONFIG = MagiConfig(data=DataConfig(frames=3, height=16, width=32, batch_size=2, max_interval=5))


def test_who_takes_part(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    assert side_by_side.implementations([]) == ['JAX']
    assert side_by_side.implementations(['torch_compiled']) == ['JAX', 'PyTorch compiled']
    assert side_by_side.implementations(['torch_compiled', 'torch']) == ['JAX', 'PyTorch', 'PyTorch compiled']
    with pytest.raises(ConfigError, match='--against tensorflow: there are torch, torch_compiled'):
        side_by_side.implementations(['torch', 'tensorflow'])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install -e \.\[torch\]'):
        side_by_side.implementations(['torch'])


def test_outputs_that_differ_are_not_timed():
    ours = {'loss': np.array([2.0, 1.0]), 'bad_leaf': -1}
    assert side_by_side.differences(ours, {'loss': np.array([2.0, 1.0])}) == {'loss': 0.0}
    side_by_side.check_differences('PyTorch', {'loss': 1e-5}, {'loss': 1e-4})
    for theirs in ([2.0, 1.001], [2.0, np.nan]):
        found = side_by_side.differences(ours, {'loss': np.array(theirs)})
        with pytest.raises(ConfigError, match='outputs of PyTorch differ, so nothing is timed: loss by'):
            side_by_side.check_differences('PyTorch', found, {'loss': 1e-4})


def test_latents_are_read_from_the_bytes_of_a_video():
    batch = problem.make_batch(CONFIG)
    tokens = problem.clean_tokens(CONFIG, batch)
    assert tokens.shape == (2, 3, 2, 16)
    read = batch['video'][1, 2].reshape(-1)[: 2 * 4 * 4]
    np.testing.assert_allclose(np.sort(tokens[1, 2].ravel()), np.sort((read / 127.5 - 1) * 3**0.5), rtol=1e-5)
    assert 0.9 < tokens.std() < 1.1


def test_what_has_no_reference_is_refused():
    with pytest.raises(ConfigError, match='no PyTorch reference'):
        problem.latent_bytes(MagiConfig(objective='autoencoder'))
    with pytest.raises(ConfigError, match='tokenizer.channels = 13 is more than the 12 bytes'):
        problem.latent_bytes(MagiConfig(tokenizer=TokenizerConfig(channels=13, downsample=2)))


def test_seconds_of_both_clocks():
    seconds = resources.measure(lambda: sum(range(200_000)))
    assert seconds['wall'] > 0 and seconds['cpu'] > 0
    assert resources.peak_resident_bytes() > 2**20


def test_a_turn_does_not_count_its_first_call():
    """Which may wait for memory that the pause before it took away."""

    class Slept:
        made = []

        def run(self, calls):
            time.sleep(0.0 if self.made else 0.2)
            self.made.append(calls)

    assert side_by_side.Worker(Slept(), 0).turn(2)['wall'] < 0.05
    assert Slept.made == [1, 2]


def _implementation(kind, wall, cpu, **fields):
    turns = [{'wall': w, 'cpu': c} for w, c in zip(wall, cpu)]
    rates = {'wall': 4e9, 'cpu': 8e9}
    fields = {'device_bytes': None, 'resident_bytes': 3 * 2**20, 'first': {'wall': 9.0, 'cpu': 5.0}} | fields
    return {'kind': kind, 'turns': turns, 'matmul_flops': rates, **fields}


@pytest.mark.parametrize(('kind', 'clock'), [('cpu', 'CPU ms'), ('gpu', 'wall ms')])
def test_table(kind, clock):
    """Ratios are taken round by round: the third round was slow for both."""
    implementations = {
        'JAX': _implementation(kind, [2.0, 2.0, 8.0], [1.0, 1.0, 4.0]),
        'PyTorch': _implementation(kind, [1.0, 1.0, 4.0], [2.0, 2.0, 2.0]),
    }
    result = {'title': 'T', 'task': 'train', 'clips': 3, 'frames': 5, 'flops': 2e9, 'implementations': implementations}
    told = table.summary(result)
    expected = {'cpu': (1.0, 2.0, 0.5, 2.0), 'gpu': (2.0, 0.5, 0.5, 0.5)}[kind]
    ratios = (told['PyTorch'][name] for name in ('ratio', 'ratio_low', 'ratio_high'))
    assert (told['JAX']['seconds'], *ratios) == expected
    assert told['JAX']['share'] == pytest.approx({'cpu': 2e9 / 1.0 / 8e9, 'gpu': 2e9 / 2.0 / 4e9}[kind])
    lines = table.markdown(result).splitlines()
    assert len(lines) == 4 and len({line.count('|') for line in lines}) == 1
    assert f'{clock} a step' in lines[0] and lines[2].startswith('| JAX | ') and ' 3 | ' in lines[2]
    frames = table.markdown(result | {'task': 'sample'})
    assert 'a frame' in frames and 'frames/s' in frames
