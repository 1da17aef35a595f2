"""Checkpoints of a run: Orbax, asynchronous, atomic; restored on any mesh; refused for another model.

A work folder holds `config.json`, `checkpoints/<step>/` and, for generators, `tokenizer/`: a copy of the frozen one.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from magi_jax.config import Config, ConfigError, from_config_dict

CONFIG_FILE = 'config.json'
# What a resumed run may change without becoming another experiment.
FREE_FIELDS = ('sampler', 'mesh', 'data.path', 'data.threads', 'tokenizer.path', 'train.remat', 'train.log_every',
               'train.eval_every', 'train.eval_batches', 'train.sample_every', 'train.checkpoint_every',
               'train.keep_checkpoints')  # fmt: skip


class Checkpoints:
    """Saves and restores a run's state under `workdir/checkpoints`.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay; what a killed run left half-written is removed. None: for reading
        only, also while the run is being trained.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int | None = None):
        folder, writes = Path(workdir).absolute() / 'checkpoints', keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=writes, cleanup_tmp_directories=writes, enable_async_checkpointing=writes
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; one whose save was interrupted does not count."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Starts writing named trees; returns once the arrays are copied. A full disk shows here or in `wait`."""
        self._manager.save(step, args=ocp.args.Composite(**{k: ocp.args.StandardSave(v) for k, v in items.items()}))

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The newest of the named trees, each laid out as the shapes and shardings of its abstract tree.

        Raises:
          FileNotFoundError: there is no complete checkpoint.
        """
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f'no checkpoint in {self._manager.directory}: train first with this --workdir')
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        return {name: restored[name] for name in abstract}

    def wait(self) -> None:
        """Blocks until the last save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the writer's threads."""
        self._manager.close()


def save_config(workdir: str | os.PathLike, config: Config) -> None:
    """Writes `config.json`, or checks that the one there describes the same experiment.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{CONFIG_FILE}.{os.getpid()}')
    draft.write_text(json.dumps(dataclasses.asdict(config), indent=1))
    draft.replace(path)


def latest_step(workdir: str | os.PathLike) -> int | None:
    """Step of the newest complete checkpoint of a run's folder."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest_step()
    checkpoints.close()
    return step


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
