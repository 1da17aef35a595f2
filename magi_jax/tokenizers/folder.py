"""A tokenizer on disk: `config.json`, `params.npz` and `statistics.json`, written atomically."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer, fingerprint

FILES = ('params.npz', 'statistics.json')
NOT_MEASURED = 'not measured'  # provenance of placeholder statistics 0, 1


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike, provenance: dict) -> None:
    """Write a folder that `load_tokenizer` reads; replace an older one.

    Args:
      tokenizer: parameters and latent statistics to save.
      folder: local folder; a rename creates it once all files are complete.
      provenance: what the statistics were measured on (clips, dataset, split, seed), as JSON values.
    """
    folder = pathlib.Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as scratch:
        draft = pathlib.Path(scratch) / 'new'
        draft.mkdir()
        np.savez(draft / 'params.npz', **_flat(tokenizer.params))
        _write_json(draft / 'statistics.json', {**_statistics(tokenizer), **provenance})
        _write_json(
            draft / 'config.json',
            {
                'tokenizer': dataclasses.asdict(dataclasses.replace(tokenizer.config, path='')),
                'fingerprint': fingerprint(tokenizer),
                'sha256': {name: _sha256(draft / name) for name in FILES},
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
    for name in ('config.json', *FILES):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'no tokenizer in {folder}: {name} is missing: copy the whole folder there')
    try:
        written = json.loads((folder / 'config.json').read_text())
        config = TokenizerConfig(**written['tokenizer'])
        hashes = {name: written['sha256'][name] for name in FILES}
        expected = written['fingerprint']
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / 'config.json') from error
    for name in FILES:
        if _sha256(folder / name) != hashes[name]:
            raise _damaged(folder / name)
    statistics = read_statistics(folder)
    with np.load(folder / 'params.npz') as arrays:
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
    return json.loads((pathlib.Path(folder) / 'statistics.json').read_text())


def _flat(params: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten_dict(params, sep='/').items()}


def _statistics(tokenizer: Tokenizer) -> dict[str, list[float]]:
    return {'mean': np.asarray(tokenizer.latent_mean).tolist(), 'std': np.asarray(tokenizer.latent_std).tolist()}


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n')


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(path: pathlib.Path) -> ValueError:
    return ValueError(f'{path} is damaged or was changed after it was written: copy the tokenizer folder again')
