"""A tokenizer on disk: `config.json`, its parameters and `statistics.json`, written atomically.

Run folders hold the parameters as `params.npz`, folders of `magi_jax.pretrained` as `model.safetensors`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer, fingerprint

NPZ, SAFETENSORS, STATISTICS = 'params.npz', 'model.safetensors', 'statistics.json'
NOT_MEASURED = 'not measured'  # provenance of placeholder statistics 0, 1


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike, provenance: dict, params_file: str = NPZ) -> None:
    """Write a folder that `load_tokenizer` reads; replace an older one.

    Args:
      tokenizer: parameters and latent statistics to save.
      folder: local folder; a rename creates it once all files are complete.
      provenance: what the statistics were measured on (clips, dataset, split, seed), as JSON values.
      params_file: NPZ or SAFETENSORS.
    """
    folder = pathlib.Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as scratch:
        draft = pathlib.Path(scratch) / 'new'
        draft.mkdir()
        _write_params(draft / params_file, _flat(tokenizer.params))
        _write_json(draft / STATISTICS, {**_statistics(tokenizer), **provenance})
        _write_json(
            draft / 'config.json',
            {
                'tokenizer': dataclasses.asdict(dataclasses.replace(tokenizer.config, path='')),
                'fingerprint': fingerprint(tokenizer),
                'sha256': {name: _sha256(draft / name) for name in (params_file, STATISTICS)},
            },
        )
        if folder.exists():
            folder.rename(pathlib.Path(scratch) / 'old')
        draft.rename(folder)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Load a tokenizer from a folder that `save_tokenizer` wrote.

    Raises:
      FileNotFoundError: the folder or one of its files is missing.
      ValueError: a file is damaged or was changed after it was written; the message names it.
    """
    folder = pathlib.Path(folder)
    params_file = SAFETENSORS if (folder / SAFETENSORS).exists() else NPZ
    for name in ('config.json', params_file, STATISTICS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'no tokenizer in {folder}: {name} is missing: copy the whole folder there')
    try:
        written = json.loads((folder / 'config.json').read_text())
        config = TokenizerConfig(**written['tokenizer'])
        hashes = {name: written['sha256'][name] for name in (params_file, STATISTICS)}
        expected = written['fingerprint']
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / 'config.json') from error
    for name, expected_hash in hashes.items():
        if _sha256(folder / name) != expected_hash:
            raise _damaged(folder / name)
    statistics = read_statistics(folder)
    arrays = _read_params(folder / params_file)
    params = unflatten_dict({name: jnp.asarray(value) for name, value in arrays.items()}, sep='/')
    mean, std = (jnp.asarray(statistics[name], jnp.float32) for name in ('mean', 'std'))
    tokenizer = Tokenizer(params, mean, std, config)
    if fingerprint(tokenizer) != expected:
        raise _damaged(folder / 'config.json')
    return tokenizer


def open_tokenizer(config: TokenizerConfig, height: int, width: int) -> Tokenizer:
    """Open the frozen tokenizer that a config names, for frames of height x width.

    Raises:
      ConfigError: no folder is named, none is there, or its latents were never measured; else as `load_tokenizer`.
    """
    if config.kind == 'identity':
        return create_tokenizer(config, jax.random.key(0), height, width)
    if not config.path:
        raise ConfigError(f'tokenizer.path names no tokenizer folder: {how_to_make(config)}')
    if not (pathlib.Path(config.path) / 'config.json').is_file():
        raise ConfigError(f'no tokenizer in {config.path} (tokenizer.path): {how_to_make(config)}')
    tokenizer = load_tokenizer(config.path)
    if read_statistics(config.path).get('statistics') == NOT_MEASURED:
        command = 'python -m launch.measure_statistics with the same --config'
        raise ConfigError(f'the latents of {config.path} have no known scale yet: run {command}')
    return tokenizer


def how_to_make(config: TokenizerConfig) -> str:
    """Return the command that makes the folder `config.path`, in words."""
    if config.kind != 'autoencoder_kl':
        out = config.path or 'FOLDER'
        return f'convert it with python -m launch.convert_weights --kind {config.kind} --source FILE --out {out}'
    run = pathlib.Path(config.path).parent if config.path else 'FOLDER'
    return (
        f'train one with python -m launch.train --config configs/quickstart_autoencoder.py --workdir {run},'
        ' or with the :autoencoder variant of your own config'
    )


def read_statistics(folder: str | os.PathLike) -> dict:
    """Read mean and std of the latents in a folder, with their provenance."""
    return json.loads((pathlib.Path(folder) / STATISTICS).read_text())


def _write_params(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    if path.suffix == '.npz':
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path, {'format': 'flax'})
        path.chmod(0o644)  # safetensors creates files that only their owner can read


def _read_params(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix != '.npz':
        return safetensors.numpy.load_file(path)
    with np.load(path) as arrays:
        return dict(arrays)


def _flat(params: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, order='C') for name, value in flatten_dict(params, sep='/').items()}


def _statistics(tokenizer: Tokenizer) -> dict[str, list[float]]:
    return {'mean': np.asarray(tokenizer.latent_mean).tolist(), 'std': np.asarray(tokenizer.latent_std).tolist()}


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n')


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(path: pathlib.Path) -> ValueError:
    return ValueError(f'{path} is damaged or was changed after it was written: copy the tokenizer folder again')
