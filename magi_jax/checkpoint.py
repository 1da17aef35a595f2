"""Checkpoints of a run, written asynchronously and atomically by Orbax and restored on any mesh and host count.

A work folder holds `config.json`, `checkpoints/<step>/` and, for generators, `tokenizer/`, a copy of the frozen
tokenizer. A checkpoint stores checksums of its arrays. A damaged checkpoint is skipped, and a trainer moves it to
`damaged/`.

The work folder of a run with stages holds `config.json` and `tokenizer/` of all stages, and `stage_1/`, `stage_2/`, ...
with the config and checkpoints of each.
"""

import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.options import MultiprocessingOptions

from magi_jax.config import Config, ConfigError, from_config_dict
from magi_jax.config.stages import STAGE_FIELDS

CONFIG_FILE = 'config.json'
# Fields that a resumed run may change without becoming another experiment.
FREE_FIELDS = ('sampler', 'mesh', 'data.path', 'data.threads', 'tokenizer.path', 'train.remat', 'train.unroll',
               'train.log_every', 'train.eval_every', 'train.eval_batches', 'train.sample_every',
               'train.checkpoint_every', 'train.keep_checkpoints')  # fmt: skip
STAGE = r'stage_(\d+)'  # names of the folders of stages
CHECKSUMS, DAMAGED = 'checksums', 'damaged'
# Errors that Orbax and TensorStore raise for files that are missing, truncated or overwritten.
READ_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError)


class Checkpoints:
    """Saves and restores a run's state under `workdir/checkpoints`. All hosts must call every method in the same order.

    Args:
      workdir: the run's folder, shared by all hosts.
      keep: number of newest checkpoints to keep. Unfinished saves of a killed run are removed. None: open for reading
        only, which is safe while the run is being trained.
      warn: function that receives one line for every damaged checkpoint that is skipped.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int | None = None, warn: Callable[[str], None] = warnings.warn
    ):
        self._folder = Path(workdir).absolute() / 'checkpoints'
        self._warn = warn
        self.restored_step: int | None = None  # step of the checkpoint that `restore` read last
        self._manager = None
        if keep is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        # Every host reads independently: with a barrier, all would wait for a host that found a damaged file.
        host = jax.process_index()
        single_host = MultiprocessingOptions(
            primary_host=host, active_processes={host}, barrier_sync_key_prefix=f'read{host}'
        )
        self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=single_host)

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None. An interrupted save does not count."""
        return self._next_step(None)

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Start writing named trees. Return once the arrays are copied.

        Write errors such as a full disk are raised here or in `wait`.
        """
        checksums = {name: int(_checksum(tree)) for name, tree in items.items()}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**args, **{CHECKSUMS: ocp.args.JsonSave(checksums)}))

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """Read the named trees of the newest intact checkpoint, with the shapes and shardings of `abstract`.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ConfigError: all checkpoints are damaged.
        """
        step, damaged = self.latest_step(), {}
        if step is None:
            raise FileNotFoundError(f'no checkpoint in {self._folder}: train first with this --workdir')
        while step is not None:
            items, reason = self._read(step, abstract)
            if items is not None:
                self._move_damaged(damaged)
                self.restored_step = step
                return items
            damaged[step], before = reason, self._next_step(step)
            if before is not None:
                where = f'the checkpoint of step {step} in {self._folder}'
                self._warn(f'{where} is damaged ({reason}): trying step {before}')
            step = before
        raise ConfigError(
            f'every checkpoint in {self._folder} is damaged (step {max(damaged)}: {damaged[max(damaged)]}):'
            ' restore one from a copy, or start again in another --workdir'
        )

    def wait(self) -> None:
        """Block until the last save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Block until the last save is complete, then release the writer's threads."""
        self._reader.close()
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After the loss of another host, the save in progress never completes, so `close` would block.
        if jax.process_count() == 1 or kind is None or issubclass(kind, FloatingPointError):
            self.close()

    def _next_step(self, before: int | None) -> int | None:
        """Return the newest step (below `before`, if given), as the first host sees the folder. None: no such step."""
        steps = [step for step in _steps(self._folder) if before is None or step < before]
        step = max(steps, default=-1)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else step

    def _read(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """Read one checkpoint. Return (trees, '') or (None, reason), the same on all hosts except for the reason."""
        restore_args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restore_args[CHECKSUMS] = ocp.args.JsonRestore()
        items, reason = None, 'another host cannot read it'
        try:
            items = self._reader.restore(self._folder / str(step), args=ocp.args.Composite(**restore_args))
            expected = {name: items[CHECKSUMS][name] for name in abstract}
        except Exception as error:
            if not isinstance(error, READ_ERRORS) and type(error) is not Exception:  # Orbax, for a truncated chunk
                raise
            items, reason = None, _first_line(error)
        if not _true_on_all_hosts(items is not None):
            return None, reason
        for name in abstract:
            if int(_checksum(items[name])) != expected[name]:
                return None, f'the checksum of {name} does not match'
        return {name: items[name] for name in abstract}, ''

    def _move_damaged(self, damaged: dict[int, str]) -> None:
        """Move damaged checkpoints to `damaged/`, so that their steps can be saved again."""
        if self._manager is None or not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                target = self._folder.with_name(DAMAGED) / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
        _true_on_all_hosts(True)  # a barrier: wait for the first host to move the folders
        self._manager.reload()


def save_config(workdir: str | os.PathLike, config: Config) -> None:
    """Write `config.json` on the first host. Check on all hosts that an existing file describes the same experiment.

    Raises:
      ConfigError: the folder belongs to another experiment.
    """
    path = Path(workdir) / CONFIG_FILE
    if saved_experiment(workdir, config) == config:
        return
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{CONFIG_FILE}.{os.getpid()}')
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=1))
    temporary.replace(path)


def saved_experiment(workdir: str | os.PathLike, config: Config) -> Config | None:
    """Return the saved config of the experiment that a work folder holds, or None. Check that it is this one.

    An experiment starts with its first checkpoint.

    Raises:
      ConfigError: the folder belongs to another experiment. The message names the first field that differs.
    """
    if not (Path(workdir) / CONFIG_FILE).exists() or latest_step(newest_run(workdir)) is None:
        return None
    saved = load_config(workdir)
    check_same_experiment(saved, config, str(workdir))
    return saved


def stage_folder(workdir: str | os.PathLike, number: int) -> Path:
    """Return the folder of a stage of a run."""
    return Path(workdir) / f'stage_{number}'


def newest_run(workdir: str | os.PathLike) -> Path:
    """Return the folder of the newest stage that has a checkpoint; `workdir` itself for a run without stages."""
    if latest_step(workdir) is not None:
        return Path(workdir)
    numbers = [int(match[1]) for path in Path(workdir).glob('stage_*') if (match := re.fullmatch(STAGE, path.name))]
    folders = (stage_folder(workdir, number) for number in sorted(numbers, reverse=True))
    return next((folder for folder in folders if latest_step(folder) is not None), Path(workdir))


def experiment_folder(workdir: str | os.PathLike) -> Path:
    """Return the work folder of the whole run, which holds the tokenizer, for the folder of a stage."""
    workdir = Path(workdir)
    is_stage = re.fullmatch(STAGE, workdir.name) and (workdir.parent / CONFIG_FILE).is_file()
    return workdir.parent if is_stage else workdir


def latest_step(workdir: str | os.PathLike) -> int | None:
    """Return the step of the newest complete checkpoint in a work folder, or None, as this host sees it."""
    return max(_steps(Path(workdir) / 'checkpoints'), default=None)


def load_config(workdir: str | os.PathLike) -> Config:
    """Read the config of a run.

    Raises:
      FileNotFoundError: `workdir` is not the work folder of a run.
      ConfigError: the file is damaged or from another version.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f'{workdir} holds no run (no {CONFIG_FILE}): give the --workdir of a training run')
    try:
        return from_config_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        hint = 'restore it from a copy, or start again in another --workdir'
        raise ConfigError(f'{path} is damaged ({error}): {hint}') from error


def check_same_experiment(saved: Config, requested: Config, workdir: str) -> None:
    """Raise ConfigError naming the first field that differs. Fields in `FREE_FIELDS` may differ."""
    old, new = (_flat(dataclasses.asdict(config)) for config in (saved, requested))
    for field in new:
        if not _config_field(field).startswith(FREE_FIELDS) and old.get(field) != new[field]:
            raise ConfigError(
                f'{workdir} was started with {field} = {old.get(field)}, not {new[field]}: use another --workdir'
            )


def _config_field(field: str) -> str:
    """Return the field of the config that a field of a stage replaces; any other field as it is."""
    match = re.fullmatch(r'stages\[\d+\]\.(\w+)', field)
    return STAGE_FIELDS[match[1]] if match else field


def _flat(group: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    fields = {}
    for name, value in group.items():
        if isinstance(value, dict):
            fields |= _flat(value, f'{prefix}{name}.')
        elif name == 'stages':
            fields['len(stages)'] = len(value)
            for number, stage in enumerate(value):
                fields |= _flat(stage, f'stages[{number}].')
        else:
            fields[f'{prefix}{name}'] = value
    return fields


def _steps(folder: Path) -> list[int]:
    """List the steps of complete checkpoints. An unfinished save has a longer folder name."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


@jax.jit
def _checksum(tree: Any) -> jax.Array:
    """Compute a uint32 checksum over all bits of a tree of arrays.

    It is a sum modulo 2^32 in which every element has its own odd weight. It does not depend on the mesh, and a change
    of any one element changes it.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(bits, f'uint{8 * min(bits.dtype.itemsize, 4)}').astype(jnp.uint32)
        position = jnp.zeros(bits.shape, jnp.uint32)
        for axis, size in enumerate(bits.shape):
            position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        total += jnp.uint32(2 * number + 1) * jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
    return total


def _true_on_all_hosts(value: bool) -> bool:
    return value if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(value))))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]
