"""I3D computes what VideoGPT's class does (tests/fixtures/make_i3d.py), and takes both published files, key by key."""

import functools

import jax
import numpy as np
import pytest
from einops import rearrange

from magi_jax.config import ConfigError
from magi_jax.evaluation import i3d
from magi_jax.tokenizers.convert.checkpoint_files import Weight
from tests.evaluation.i3d_weights import EPSILONS, STEP, stored, torch_weights, video

PARAMETERS = 12_697_264  # the scales that are 1 counted, statistics not
TENSORFLOW_BRANCHES = {
    'b0': 'Branch_0/Conv3d_0a_1x1',
    'b1a': 'Branch_1/Conv3d_0a_1x1',
    'b1b': 'Branch_1/Conv3d_0b_3x3',
    'b2a': 'Branch_2/Conv3d_0a_1x1',
    'b2b': 'Branch_2/Conv3d_0b_3x3',
    'b3b': 'Branch_3/Conv3d_0b_1x1',
}


def _read(monkeypatch, weights):
    monkeypatch.setattr(i3d.checkpoint_files, 'open_weights', lambda source: weights)
    return i3d.read_weights('i3d.pt')


@functools.cache
def _torch_variables():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _read(monkeypatch, torch_weights())


def _tensorflow_arrays():
    """The same weights under the names and in the shapes of the TensorFlow graph."""
    made = {}
    for name, weight in torch_weights().items():
        *modules, layer, kind = name.split('.')
        value = weight.read()
        if modules == ['logits']:
            scope = 'Logits/Conv3d_0c_1x1'
        elif len(modules) == 2:
            scope = f'{modules[0]}/{TENSORFLOW_BRANCHES[modules[1]]}'
            scope = scope.replace('Mixed_5b/Branch_2/Conv3d_0b_3x3', 'Mixed_5b/Branch_2/Conv3d_0a_3x3')
        else:
            (scope,) = modules
        parts = {'running_mean': 'moving_mean', 'running_var': 'moving_variance', 'bias': 'beta'}
        if layer == 'conv3d' and kind == 'weight':
            made[f'{scope}/conv_3d/w'] = rearrange(value, 'o i t h w -> t h w i o')
        elif layer == 'conv3d':
            made[f'{scope}/conv_3d/b'] = value
        elif kind in parts:
            made[f'{scope}/batch_norm/{parts[kind]}'] = value.reshape(1, 1, 1, 1, -1)
    return {f'RGB/inception_i3d/{name}': value for name, value in made.items()}


@pytest.mark.parametrize('frames', [1, 8])
def test_clips_that_are_too_short_are_refused(frames):
    with pytest.raises(ConfigError, match=f'at least 9 frames, not {frames}'):
        jax.eval_shape(i3d.I3D(1e-3).init, jax.random.key(0), np.zeros((1, frames, 224, 224, 3), np.float32))


def test_logits_are_those_of_the_public_class():
    variables, _ = _torch_variables()
    clip = i3d.to_input(video(), 'torch-crop')
    logits = jax.jit(lambda epsilon, x: i3d.I3D(epsilon).apply(variables, x))
    for epsilon in EPSILONS:
        expected = stored()[f'logits_{epsilon:g}']
        error = np.linalg.norm(logits(epsilon, clip) - expected) / np.linalg.norm(expected)
        assert error < 1e-4
    apart = np.linalg.norm(stored()['logits_0.001'] - stored()['logits_1e-05']) / np.linalg.norm(expected)
    assert apart > 0.01  # else the epsilon would not have been tested


def test_input_is_that_of_the_public_class():
    made = i3d.to_input(video(), 'torch-crop')
    assert made.shape == (1, 9, 224, 224, 3)
    np.testing.assert_allclose(made[:, :, ::STEP, ::STEP], stored()['input'], atol=2e-6)


def test_tensorflow_1_takes_pixels_at_their_corners():
    row, column = np.mgrid[:64, :112].astype(np.uint8)
    video = np.broadcast_to(np.stack([row, column, row], axis=-1), (1, 2, 64, 112, 3))
    made = np.asarray(255 * (i3d.to_input(video, 'tf1') + 1) / 2)[0, 1]
    np.testing.assert_allclose(made[:, 5, 0], np.minimum(np.arange(224) * 64 / 224, 63), atol=1e-4)
    np.testing.assert_allclose(made[5, :, 1], np.minimum(np.arange(224) / 2, 111), atol=1e-4)


def test_every_torch_key_is_accounted_for(monkeypatch):
    weights = torch_weights()
    assert len(weights) == 344
    variables, report = _torch_variables()
    dropped = {reason: len(names) for reason, names in report.dropped.items()}
    assert (report.layout, report.used, dropped) == (
        'VideoGPT',
        230,
        {i3d.UNSCALED: 57, 'counter of its training': 57},
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == PARAMETERS - sum(
        weights[name].read().size for name in report.dropped[i3d.UNSCALED]
    )
    without_counters = {name: weight for name, weight in weights.items() if 'num_batches' not in name}
    assert len(without_counters) == 287
    jax.tree.map(np.testing.assert_array_equal, _read(monkeypatch, without_counters)[0], variables)


def test_tensorflow_variables_give_the_same_network(tmp_path):
    arrays = _tensorflow_arrays()
    assert len(arrays) == 230
    np.savez(tmp_path / 'i3d.npz', **arrays)
    variables, report = i3d.read_weights(tmp_path / 'i3d.npz')
    assert (report.layout, report.used, report.dropped) == ('TensorFlow graph', 230, {})
    jax.tree.map(np.testing.assert_array_equal, variables, _torch_variables()[0])


KEY = 'Mixed_4c.b1b.conv3d.weight'


@pytest.mark.parametrize(
    ('damage', 'complaint'),
    [
        (lambda w: w.pop(KEY), f'missing: {KEY}$'),
        (lambda w: w.update({'Mixed_4g.b0.conv3d.weight': w[KEY]}), 'unexpected: Mixed_4g.b0.conv3d.weight$'),
        (lambda w: w.update({KEY: Weight((1, 3), None)}), rf'of another shape: {KEY} \(1, 3\) instead of \(224, 112'),
        (
            lambda w: w.update({'Mixed_3b.b0.bn.weight': Weight((64,), lambda: np.full(64, 2.0))}),
            'scale of Mixed_3b.b0.bn.weight is not 1',
        ),
    ],
    ids=['missing', 'extra', 'misshapen', 'scaled'],
)
def test_a_damaged_key_is_named(monkeypatch, damage, complaint):
    weights = torch_weights()
    damage(weights)
    with pytest.raises(ConfigError, match=complaint):
        _read(monkeypatch, weights)


def test_a_damaged_tensorflow_key_is_named_as_the_graph_names_it(tmp_path):
    arrays = _tensorflow_arrays()
    name = 'RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w'
    arrays[name.replace('0a', '0b')] = arrays.pop(name)
    np.savez(tmp_path / 'i3d.npz', **arrays)
    with pytest.raises(ConfigError, match=f'missing: {name}; unexpected: {name.replace("0a", "0b")}$'):
        i3d.read_weights(tmp_path / 'i3d.npz')
