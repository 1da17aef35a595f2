"""The plan of a dataset in preparation: written first, the same for every process, and never mixed with another one."""

import contextlib
import fcntl
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from magi_jax.config import ConfigError
from magi_jax.data import prepared
from magi_jax.data.preparation import shards


def begin(
    folder: pathlib.Path,
    plan: dict[str, Any],
    replace: bool,
    difference: Callable[[dict[str, Any]], str],
    advice: str,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write plan.json, unless the same plan exists. Return the plan that is in the folder.

    Args:
      folder: folder of the dataset.
      plan: settings and counts, with the hash of what must not change under 'digest'.
      replace: True deletes a dataset that was started with another plan.
      difference: function that explains in words what differs in an existing plan.
      advice: end of the message that refuses another plan, after 'delete it and'.
      notes: further entries of plan.json, outside the digest.

    Raises:
      ConfigError: the folder holds a dataset of another plan.
    """
    path = folder / prepared.PLAN
    existing = json.loads(path.read_text()) if path.is_file() else None
    if existing and existing['digest'] == plan['digest']:
        return existing
    if existing and not replace:
        raise ConfigError(f'{folder} was started with {difference(existing)}: add --replace to delete it and {advice}')
    if existing:
        delete_dataset(folder)
    (folder / 'reports').mkdir(parents=True, exist_ok=True)
    plan = plan | (notes or {})
    shards.write_json(path, plan)
    return plan


def delete_dataset(folder: pathlib.Path) -> None:
    """Delete a dataset, unless another process is preparing it. Raise the errors of `exclusive_lock`."""
    with exclusive_lock(folder, (0, 1)):
        shutil.rmtree(folder)


def read_plan(name: str, data_dir: str) -> dict[str, Any]:
    """Read plan.json of a dataset.

    Raises:
      ConfigError: the dataset has no plan.json.
    """
    path = prepared.dataset_folder(name, data_dir) / prepared.PLAN
    if not path.is_file():
        raise ConfigError(f'{path.parent} is no prepared dataset (no {prepared.PLAN}): check --dataset and --data_dir')
    return json.loads(path.read_text())


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path, part: tuple[int, int]) -> Iterator[None]:
    """Lock one part of a dataset against a second process. The operating system releases the lock after a kill.

    Raises:
      ConfigError: another process holds the lock.
    """
    with open(folder / 'reports' / f'.part-{part[0]}-of-{part[1]}.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f'another process is preparing {folder}: wait until it ends') from error
        yield
