"""Checkpoints of a run: Orbax, asynchronous, atomic; written by all hosts, restored on any mesh by any number of hosts.

A work folder holds `config.json`, `checkpoints/<step>/` and, for generators, `tokenizer/`: a copy of the frozen one.
A checkpoint carries checksums of its arrays: a damaged one is passed over, and a trainer moves it to `damaged/`.
"""

import dataclasses
import json
import os
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

CONFIG_FILE = 'config.json'
# What a resumed run may change without becoming another experiment.
FREE_FIELDS = ('sampler', 'mesh', 'data.path', 'data.threads', 'tokenizer.path', 'train.remat', 'train.unroll',
               'train.log_every', 'train.eval_every', 'train.eval_batches', 'train.sample_every',
               'train.checkpoint_every', 'train.keep_checkpoints')  # fmt: skip
CHECKSUMS, DAMAGED = 'checksums', 'damaged'
# What Orbax and TensorStore raise for files that are missing, cut short or overwritten.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError)


class Checkpoints:
    """Saves and restores a run's state under `workdir/checkpoints`. All hosts call every method, in the same order.

    Args:
      workdir: the run's folder, shared by all hosts.
      keep: how many of the newest checkpoints stay; what a killed run left half-written is removed. None: for reading
        only, also while the run is being trained.
      warn: told in a line of every checkpoint that is passed over.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int | None = None, warn: Callable[[str], None] = warnings.warn
    ):
        self._folder = Path(workdir).absolute() / 'checkpoints'
        self._warn = warn
        self.restored_step: int | None = None  # of the checkpoint that `restore` read last
        self._manager = None
        if keep is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        # Every host reads by itself: in a barrier, all would wait for the one that found a damaged file.
        own = jax.process_index()
        alone = MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'read{own}')
        self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; one whose save was interrupted does not count."""
        return self._next_step(None)

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Starts writing named trees; returns once the arrays are copied. A full disk shows here or in `wait`."""
        checksums = {name: int(_checksum(tree)) for name, tree in items.items()}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**args, **{CHECKSUMS: ocp.args.JsonSave(checksums)}))

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The named trees of the newest checkpoint that is whole, laid out as the shapes and shardings of `abstract`.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ConfigError: there are some, but none is whole.
        """
        step, damaged = self.latest_step(), {}
        if step is None:
            raise FileNotFoundError(f'no checkpoint in {self._folder}: train first with this --workdir')
        while step is not None:
            items, reason = self._read(step, abstract)
            if items is not None:
                self._set_aside(damaged)
                self.restored_step = step
                return items
            damaged[step], before = reason, self._next_step(step)
            if before is not None:
                where = f'the checkpoint of step {step} in {self._folder}'
                self._warn(f'{where} is damaged ({reason}): trying step {before}')
            step = before
        raise ConfigError(
            f'no checkpoint in {self._folder} is whole (step {max(damaged)}: {damaged[max(damaged)]});'
            ' restore one from a copy, or start again in another --workdir'
        )

    def wait(self) -> None:
        """Blocks until the last save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the writer's threads."""
        self._reader.close()
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # When another host is lost, the save in progress never ends.
        if jax.process_count() == 1 or kind is None or issubclass(kind, FloatingPointError):
            self.close()

    def _next_step(self, before: int | None) -> int | None:
        """The newest step, or the newest below `before`, as the first process sees the folder."""
        steps = [step for step in _steps(self._folder) if before is None or step < before]
        step = max(steps, default=-1)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else step

    def _read(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """(the trees, '') of a checkpoint, or (None, what is wrong with it); all hosts agree which."""
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        wanted[CHECKSUMS] = ocp.args.JsonRestore()
        items, reason = None, 'another host cannot read it'
        try:
            items = self._reader.restore(self._folder / str(step), args=ocp.args.Composite(**wanted))
            expected = {name: items[CHECKSUMS][name] for name in abstract}
        except Exception as error:
            if not isinstance(error, UNREADABLE) and type(error) is not Exception:  # Orbax's, for a chunk cut short
                raise
            items, reason = None, _first_line(error)
        if not _on_all_hosts(items is not None):
            return None, reason
        for name in abstract:
            if int(_checksum(items[name])) != expected[name]:
                return None, f'{name} is not what was written'
        return {name: items[name] for name in abstract}, ''

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the way of those that will be written again."""
        if self._manager is None or not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                target = self._folder.with_name(DAMAGED) / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
        _on_all_hosts(True)  # not before the first process is done
        self._manager.reload()


def save_config(workdir: str | os.PathLike, config: Config) -> None:
    """The first process writes `config.json`; all check that the one there describes the same experiment.

    An experiment begins with its first checkpoint: a config that never got that far is replaced.

    Raises:
      ConfigError: the folder belongs to another experiment; the message names the first field that differs.
    """
    path = Path(workdir) / CONFIG_FILE
    if path.exists() and latest_step(workdir) is not None:
        saved = load_config(workdir)
        check_same_experiment(saved, config, str(workdir))
        if saved == config:
            return
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{CONFIG_FILE}.{os.getpid()}')
    draft.write_text(json.dumps(dataclasses.asdict(config), indent=1))
    draft.replace(path)


def latest_step(workdir: str | os.PathLike) -> int | None:
    """Step of the newest complete checkpoint of a run's folder, as this host sees it."""
    return max(_steps(Path(workdir) / 'checkpoints'), default=None)


def load_config(workdir: str | os.PathLike) -> Config:
    """The config of a run.

    Raises:
      FileNotFoundError: `workdir` is no run's folder.
      ConfigError: the file is damaged or of another version.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f'{workdir} holds no run (no {CONFIG_FILE}); give the --workdir of a training run')
    try:
        return from_config_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ConfigError(f'{path} is damaged ({error}); restore it or start again in another --workdir') from error


def check_same_experiment(saved: Config, asked: Config, workdir: str) -> None:
    """Raises ConfigError naming the first field outside `FREE_FIELDS` that differs."""
    old, new = (_flat(dataclasses.asdict(config)) for config in (saved, asked))
    for field in new:
        if not field.startswith(FREE_FIELDS) and old.get(field) != new[field]:
            raise ConfigError(
                f'{workdir} was started with {field} = {old.get(field)}, not {new[field]}; use another --workdir'
            )


def _flat(group: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    fields = {}
    for name, value in group.items():
        fields |= _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {f'{prefix}{name}': value}
    return fields


def _steps(folder: Path) -> list[int]:
    """Complete checkpoints: a save in progress has a longer name."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


@jax.jit
def _checksum(tree: Any) -> jax.Array:
    """A uint32 of all bits in a tree of arrays, the same on any mesh; any one changed element changes it.

    A sum modulo 2^32 in which every element has its own odd weight.
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


def _on_all_hosts(fact: bool) -> bool:
    return fact if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(fact))))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]
