"""Folders of shared weights, which load on any machine without the run that made them.

The layout is that of a model repository on the Hugging Face Hub.

    config.json         config of the run, without local paths
    model.safetensors   EMA parameters in float32, named by their path in the tree: trunk/trunk/blocks/...
    tokenizer/          config.json, model.safetensors, statistics.json (absent for tokenizer.kind = identity)
    metrics.jsonl       training curves, if the run has them
    text_encoder.json   description of the text encoder, if the model reads text
    manifest.json       SHA-256 of every file above, and facts about the run
    README.md           model card; may be edited
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.checkpoint import CONFIG_FILE, experiment_folder, load_config
from magi_jax.config import Config, ConfigError
from magi_jax.objectives.api import abstract_params, make_objective
from magi_jax.pretrained.model_card import model_card, scalar_results
from magi_jax.text_encoders.api import DESCRIPTION
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.tokenizers.folder import SAFETENSORS, STATISTICS, load_tokenizer, read_statistics, save_tokenizer
from magi_jax.training.metrics import FILE as CURVES
from magi_jax.training.metrics import read_metrics

MANIFEST, CARD, TOKENIZER = 'manifest.json', 'README.md', 'tokenizer'
LOSSES = ('train/loss', 'validation/loss')
VERSION = 1  # version of the folder layout
MODEL_FILES = (CONFIG_FILE, SAFETENSORS)
TOKENIZER_FILES = tuple(f'{TOKENIZER}/{name}' for name in (CONFIG_FILE, SAFETENSORS, STATISTICS))
PACKAGES = ('jax', 'flax', 'optax', 'magi_jax')
MAX_LISTED = 3  # largest number of differences in an error message


def is_pretrained(folder: str | os.PathLike) -> bool:
    """Return whether `save_pretrained` wrote this folder. A training run has neither of the two files."""
    return any((Path(folder) / name).exists() for name in (MANIFEST, SAFETENSORS))


def read_facts(folder: str | os.PathLike, step: int) -> dict[str, Any]:
    """Read facts about the parameters of `step` from the folder of a run, of a stage or of `save_pretrained`.

    Returns:
      JSON values: step and versions; also losses, metrics and tokenizer_statistics if the folder has them.

    Raises:
      ConfigError: metrics.json or metrics.jsonl of the folder is damaged.
    """
    folder = Path(folder)
    if is_pretrained(folder):
        return json.loads((folder / MANIFEST).read_text())['facts']
    facts: dict[str, Any] = {'step': step, 'versions': _versions()}
    with contextlib.suppress(FileNotFoundError):
        facts['losses'] = _last_losses(folder, step)
    with contextlib.suppress(FileNotFoundError):
        facts['metrics'] = read_results(experiment_folder(folder) / 'metrics.json')
    with contextlib.suppress(FileNotFoundError):
        statistics = read_statistics(experiment_folder(folder) / TOKENIZER)
        facts['tokenizer_statistics'] = {name: statistics[name] for name in statistics if name not in ('mean', 'std')}
    return facts


def read_results(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Read the numbers of a metrics.json of `launch.evaluate`.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: the file does not contain such metrics.
    """
    try:
        return scalar_results(json.loads(Path(path).read_text()))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f'{path} is not a metrics.json of launch.evaluate ({error}): give another file') from error


def save_pretrained(
    folder: str | os.PathLike,
    config: Config,
    tokenizer: Tokenizer,
    params: Any,
    facts: dict[str, Any],
    name: str,
    license: str,
    workdir: str | os.PathLike | None = None,
) -> None:
    """Write a folder that `read_pretrained` reads. On several hosts, only the first writes.

    Args:
      folder: new or empty folder, or one that this function wrote before; other files in it are kept.
      config: config of the run; local paths are removed.
      tokenizer: tokenizer of the run.
      params: EMA parameters {'trunk', 'head'}.
      facts: result of `read_facts`.
      name: name of the model in its card: a Hub name or a folder.
      license: Hub identifier of the licence of the weights, e.g. 'apache-2.0'.
      workdir: folder of the run, whose training curves and description of the text encoder are copied.

    Raises:
      ConfigError: the folder belongs to a training run or to another program.
    """
    folder = Path(folder).expanduser()
    if (folder / CONFIG_FILE).exists() and not is_pretrained(folder):
        raise ConfigError(f'{folder} already holds another {CONFIG_FILE}, e.g. of a training run: give another folder')
    if jax.process_index() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # the folder cannot be loaded until the new manifest is written
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=''),
        tokenizer=dataclasses.replace(config.tokenizer, path=''),
    )
    arrays = {path: np.asarray(x, np.float32, order='C') for path, x in flatten_dict(params, sep='/').items()}
    facts = facts | {'parameters': sum(value.size for value in arrays.values())}
    _write(folder / SAFETENSORS, lambda path: safetensors.numpy.save_file(arrays, path, {'format': 'flax'}))
    _write_text(folder / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=1))
    files = MODEL_FILES
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
    if tokenizer.config.kind != 'identity':
        save_tokenizer(tokenizer, folder / TOKENIZER, facts.get('tokenizer_statistics', {}), SAFETENSORS)
        files += TOKENIZER_FILES
    for file in (CURVES, DESCRIPTION):
        if workdir is not None and (Path(workdir) / file).is_file():
            _write_text(folder / file, (Path(workdir) / file).read_text())
            files += (file,)
        else:
            (folder / file).unlink(missing_ok=True)  # an older file belongs to other weights
    _write_text(folder / CARD, model_card(config, facts, name, license.lower()))
    manifest = {'version': VERSION, 'sha256': {file: _sha256(folder / file) for file in files}, 'facts': facts}
    _write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + '\n')


def read_pretrained(folder: str | os.PathLike) -> tuple[Config, Tokenizer, Any, int]:
    """Read a folder of `save_pretrained`.

    Returns:
      Config, tokenizer, EMA parameters {'trunk', 'head'} as float32 NumPy arrays, and their step.

    Raises:
      ConfigError: a file is missing, was changed, or does not match the others; one line names it.
    """
    folder = Path(folder)
    step = _check_files(folder)
    config = load_config(folder)
    if config.tokenizer.kind == 'identity':
        tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    else:
        tokenizer = load_tokenizer(folder / TOKENIZER)
    expected = flatten_dict(nn.unbox(abstract_params(make_objective(config, tokenizer))), sep='/')
    try:
        with safetensors.safe_open(folder / SAFETENSORS, 'numpy') as file:
            slices = {path: file.get_slice(path) for path in file.keys()}  # noqa: SIM118, not a dict
            _check_tree(folder / SAFETENSORS, slices, expected)
            arrays = {path: file.get_tensor(path) for path in expected}
    except safetensors.SafetensorError as error:
        path = folder / SAFETENSORS
        raise ConfigError(f'{path} is not a safetensors file ({error}): copy the folder again') from error
    return config, tokenizer, unflatten_dict(arrays, sep='/'), step


def _check_files(folder: Path) -> int:
    """Compare every file of the manifest with its hash. Return the step."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f'{path} is missing: copy the folder again')
    try:
        manifest = json.loads(path.read_text())
        version, hashes, step = manifest['version'], manifest['sha256'], manifest['facts']['step']
        complete = set(MODEL_FILES) <= set(hashes) <= {*MODEL_FILES, *TOKENIZER_FILES, CURVES, DESCRIPTION}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'{path} is damaged ({error!r}): copy the folder again') from error
    if version != VERSION:
        raise ConfigError(f'{path} has version {version}, not {VERSION}: install another version of magi_jax')
    if not complete:
        raise ConfigError(f'{path} is damaged (it lists {", ".join(hashes)}): copy the folder again')
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise ConfigError(f'{folder / name} is missing: copy the folder again')
        if _sha256(folder / name) != expected:
            raise ConfigError(f'{folder / name} differs from the saved file (SHA-256): copy the folder again')
    return step


def _check_tree(path: Path, slices: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a file holds exactly the expected float32 arrays."""
    differences = [f'missing {name}' for name in sorted(expected.keys() - slices.keys())]
    differences += [f'unexpected {name}' for name in sorted(slices.keys() - expected.keys())]
    for name in sorted(slices.keys() & expected.keys()):
        found, required = (slices[name].get_dtype(), slices[name].get_shape()), ('F32', list(expected[name].shape))
        if found != required:
            differences.append(f'{name} is {found[0]} {found[1]}, not {required[0]} {required[1]}')
    if differences:
        more = f' and {len(differences) - MAX_LISTED} more' if len(differences) > MAX_LISTED else ''
        raise ConfigError(
            f'{path} does not hold the parameters of {CONFIG_FILE}: {"; ".join(differences[:MAX_LISTED])}{more}:'
            ' copy both again'
        )


def _last_losses(folder: Path, step: int) -> dict[str, float]:
    """Return the last value up to `step` of each logged loss."""
    try:
        scalars = read_metrics(os.fspath(folder))
    except ValueError as error:  # the message names the file and the line
        raise ConfigError(str(error)) from error
    known = {name: [value for at, value in scalars.get(name, {}).items() if at <= step] for name in LOSSES}
    return {name: values[-1] for name, values in known.items() if values}


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout is not installed
            versions[package] = importlib.metadata.version(package)
    return versions


def _write(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f'.{path.name}.draft')
    write(temporary)
    temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda temporary: temporary.write_text(text))


def _sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
