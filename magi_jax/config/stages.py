"""The stages of a curriculum. A run trains through them, each from the weights of the stage before.

    config.stages = ({'steps': 20_000, 'frames': 5}, {'steps': 10_000, 'frames': 13, 'batch_size': 64})

Stages are counted from 1, as their folders `stage_1`, `stage_2`, ... in the work folder.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from magi_jax.config.groups import Config
from magi_jax.fields import ConfigError

# Field of a stage: the field of the config that it replaces.
STAGE_FIELDS = {
    'steps': 'train.steps',
    'frames': 'data.frames',
    'height': 'data.height',
    'width': 'data.width',
    'source': 'data.source',
    'batch_size': 'data.batch_size',
    'accumulate': 'optim.accumulate',
    'learning_rate': 'optim.learning_rate',
    'warmup_steps': 'optim.warmup_steps',
    'remat': 'train.remat',
    'fsdp': 'mesh.fsdp',
    'sequence': 'mesh.sequence',
}


def stage_config(config: Config, number: int) -> Config:
    """Return the config of a stage as that of an ordinary run, without stages.

    Its seed differs from those of other stages, so that no stage repeats the data order and the noise of another.
    """
    stage, groups = config.stages[number - 1], dict[str, dict[str, Any]]()
    for name, path in STAGE_FIELDS.items():
        group, field = path.split('.')
        if value := getattr(stage, name):
            groups.setdefault(group, {})[field] = value
    changed = {group: dataclasses.replace(getattr(config, group), **fields) for group, fields in groups.items()}
    seed = config.seed if number == 1 else int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    return dataclasses.replace(config, stages=(), seed=seed, **changed)


def select_stage(config: Config, number: int = 0) -> Config:
    """Return the config of a stage, by default of the last one; without stages the config itself.

    Raises:
      ConfigError: there is no such stage.
    """
    count = len(config.stages)
    if not 0 <= number <= count:
        raise ConfigError(
            f'there is no stage {number}, config.stages holds {count}: '
            + (f'choose 1 to {count}, or 0 for the last' if count else 'choose 0, the config itself')
        )
    return stage_config(config, number or count) if count else config


@contextlib.contextmanager
def in_stage(number: int) -> Iterator[None]:
    """Put the number of the stage before the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f'stage {number}: {error}') from error
