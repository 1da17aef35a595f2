"""Files as safetensors and torch write them, read without torch."""

import io
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from magi_jax.config import ConfigError
from magi_jax.tokenizers.convert.checkpoint_files import open_weights

FIXTURE = pathlib.Path(__file__).parents[2] / 'fixtures' / 'tokenizers_torch_files.npz'


@pytest.fixture
def files(tmp_path):
    """{name: path} of what torch wrote, and the values in it."""
    with np.load(FIXTURE) as arrays:
        stored = dict(arrays)
    names = [name for name, value in stored.items() if '/' not in name]
    for name in names:
        (tmp_path / name).write_bytes(stored[name].tobytes())
    return {name: tmp_path / name for name in names}, stored


def _same(weights, stored, prefix):
    expected = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    assert set(weights) == set(expected)
    for name, value in expected.items():
        assert weights[name].shape == value.shape
        np.testing.assert_array_equal(weights[name].read().astype(np.float32), value)


def test_torch_checkpoint_with_views_halves_and_foreign_objects(files):
    paths, stored = files
    _same(open_weights(paths['checkpoint']), stored, 'values/')


def test_torchscript_modules_give_dotted_names(files):
    paths, stored = files
    _same(open_weights(paths['jit']), stored, 'jit_values/')


def test_parameters_are_tensors(files):
    paths, stored = files
    np.testing.assert_array_equal(open_weights(paths['parameters'])['weight'].read(), stored['values/whole'])


def test_safetensors(tmp_path):
    values = {'a.weight': np.arange(6.0).reshape(2, 3), 'b': np.ones((1, 4), ml_dtypes.bfloat16), 'c': np.float16([3])}
    save_file(values, tmp_path / 'x.safetensors')
    weights = open_weights(tmp_path / 'x.safetensors')
    assert {name: weight.shape for name, weight in weights.items()} == {'a.weight': (2, 3), 'b': (1, 4), 'c': (1,)}
    for name, value in values.items():
        np.testing.assert_array_equal(weights[name].read().astype(np.float32), value.astype(np.float32))


def test_numpy_archives(tmp_path):
    np.savez(tmp_path / 'a.npz', **{'scope/w': np.ones((2, 3), np.float32)})
    weights = open_weights(tmp_path / 'a.npz')
    assert weights['scope/w'].shape == (2, 3) and (weights['scope/w'].read() == 1).all()
    np.savez(tmp_path / 'b.npz', w=np.asarray([print], object))
    with pytest.raises(ConfigError, match='holds more than arrays of numbers'):
        open_weights(tmp_path / 'b.npz')


def test_no_code_of_a_file_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'owned'),)

    with zipfile.ZipFile(tmp_path / 'evil.pt', 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({'state_dict': {'x': Evil()}}))
    assert open_weights(tmp_path / 'evil.pt') == {}
    assert not (tmp_path / 'owned').exists()


def _cut(data):
    return data[: len(data) // 2]


def _beyond(data):
    """A tensor that claims more values than its storage holds."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(
                name, content.replace(b'K\x04K\x06\x86', b'K\x04K\x07\x86') if name.endswith('.pkl') else content
            )
    return made.getvalue()


@pytest.mark.parametrize(
    ('damage', 'complaint'),
    [
        (_cut, 'is damaged'),
        (_beyond, 'beyond the end'),
        (lambda data: b'not a checkpoint', 'no safetensors file and no torch file in zip format'),
        (lambda data: b'', 'no safetensors file'),
    ],
)
def test_damaged_files_are_one_line(files, damage, complaint):
    path = files[0]['parameters']
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=complaint) as error:
        open_weights(path)
    assert str(path) in str(error.value)


def test_files_of_another_kind_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match='zip format'):
        open_weights(files[0]['old_format'])
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('readme', 'hello')
    with pytest.raises(ConfigError, match='not one that torch wrote'):
        open_weights(tmp_path / 'a.zip')
    with pytest.raises(FileNotFoundError):
        open_weights(tmp_path / 'gone.safetensors')
