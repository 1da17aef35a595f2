"""Reads published weight files without PyTorch: safetensors, torch.save, TorchScript and npz.

A torch file is a zip of raw storages and a pickle that describes how they form tensors. Our unpickler knows tensors
only. It replaces any other class by an inert placeholder, so no code from the file ever runs.
"""

import collections
import dataclasses
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from magi_jax.config import ConfigError

STORAGES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
WRAPPERS = ('state_dict', 'model')  # keys of the weights in files that hold other things as well


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor in a file. `read()` loads it, so tensors that a converter drops cost nothing."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_weights(path: str | os.PathLike) -> dict[str, Weight]:
    """Open {name: tensor} of a .safetensors or .npz file, or of a .pt, .ckpt or .jit file in the zip format of torch.

    Raises:
      OSError: the file cannot be read.
      ConfigError: the file has none of these formats or is damaged.
    """
    path = pathlib.Path(path)
    with path.open('rb') as file:
        zipped = file.read(4) == b'PK\x03\x04'
    try:
        if not zipped:
            return _open_safetensors(path)
        with zipfile.ZipFile(path) as archive:
            numpy = all(name.endswith('.npy') for name in archive.namelist())
        return _open_npz(path) if numpy else _open_torch(path)
    except SafetensorError as error:
        raise ConfigError(
            f'{path} is no safetensors file and no torch file in zip format ({error}): download it again, or save its '
            'state dict as safetensors'
        ) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise ConfigError(f'{path} is damaged ({error!r}): download it again') from error


def _open_safetensors(path: pathlib.Path) -> dict[str, Weight]:
    def read(name: str) -> np.ndarray:
        with safe_open(path, framework='numpy') as file:
            return file.get_tensor(name)

    with safe_open(path, framework='numpy') as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
    return {name: Weight(shape, lambda name=name: read(name)) for name, shape in shapes.items()}


def _open_npz(path: pathlib.Path) -> dict[str, Weight]:
    try:
        with np.load(path) as arrays:
            return {name: Weight(value.shape, lambda value=value: value) for name, value in arrays.items()}
    except ValueError as error:  # pickled objects, which NumPy refuses to load
        raise ConfigError(f'{path} holds more than arrays of numbers ({error})') from error


def _open_torch(path: pathlib.Path) -> dict[str, Weight]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise ConfigError(f'{path} is a zip file, but not one that torch wrote')
        with archive.open(pickles[0]) as file:
            content = _TensorUnpickler(file, path, pickles[0].removesuffix('.pkl')).load()
    if isinstance(content, dict) and not isinstance(content, _Placeholder):
        content = next((content[key] for key in WRAPPERS if key in content), content)
    return dict(_named_weights(content, ''))


def _named_weights(content: Any, prefix: str) -> Any:
    """Yield (dotted name, weight) of every tensor in dicts and in attributes of TorchScript modules."""
    if isinstance(content, Weight):
        yield prefix, content
    items = content.attributes if isinstance(content, _Placeholder) else content
    if isinstance(items, dict):
        for name, value in items.items():
            yield from _named_weights(value, f'{prefix}.{name}' if prefix else str(name))


class _Placeholder(dict):
    """A placeholder for an object of any other class. It accepts construction and filling and does nothing."""

    __hash__ = object.__hash__

    def __new__(cls, *_: Any, **__: Any) -> '_Placeholder':
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def append(self, _: Any) -> None:
        """Ignore the items of list-like objects."""

    extend = append


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler for tensors, ordered dicts and Python literals. Everything else becomes `_Placeholder`."""

    def __init__(self, file: Any, path: pathlib.Path, folder: str) -> None:
        super().__init__(file)
        self.path, self.folder = path, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return self._tensor
        if (module, name) == ('torch._utils', '_rebuild_parameter'):
            return lambda data, *_: data
        return STORAGES.get(name, _Placeholder) if module == 'torch' else _Placeholder

    def persistent_load(self, pid: Any) -> tuple[type, str, int]:
        """Resolve ('storage', class, file name, device, values) to dtype, file name and number of values."""
        _, dtype, key, _, count = pid
        return dtype, f'{self.folder}/{key}', count

    def _tensor(self, storage: tuple[type, str, int], offset: int, shape: tuple, strides: tuple, *_: Any) -> Weight:
        dtype, name, count = storage
        shape, strides = tuple(shape), tuple(strides)
        if offset + sum((n - 1) * step for n, step in zip(shape, strides)) >= count and 0 not in shape:
            raise pickle.UnpicklingError(f'a tensor of {shape} goes beyond the end of {name}')

        def read() -> np.ndarray:
            with zipfile.ZipFile(self.path) as archive:
                values = np.frombuffer(archive.read(name), dtype)[offset:]
            steps = tuple(step * values.itemsize for step in strides)
            return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False)

        return Weight(shape, read)
