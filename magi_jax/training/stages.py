"""Training through the stages of a curriculum, with one command.

Stage n is an ordinary run in `stage_n/` of the work folder, so it resumes as every run does. It starts from the final
parameters and EMA parameters of the stage before. Optimizer state, schedule and data order start anew.
"""

from pathlib import Path

from magi_jax.checkpoint import latest_step, save_config, stage_folder
from magi_jax.config import Config, ConfigError, stage_config
from magi_jax.config.stages import in_stage
from magi_jax.config_checks import check_config
from magi_jax.data.pipeline import check_clips
from magi_jax.objectives.api import make_objective
from magi_jax.parallel import hosts
from magi_jax.parallel.layout import training_layout
from magi_jax.parallel.mesh import check_batch, make_mesh
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.training.loop import Console, Stage, check_latents, frozen_tokenizer, train
from magi_jax.training.workdir_lock import locked


def train_stages(config: Config, workdir: str, console: Console, parameter_table: bool = False) -> bool:
    """Train through all stages of a config, or a config without stages as `train` does.

    Arguments, result and errors are those of `train`. Every stage is checked before the first one trains.
    """
    if not config.stages:
        return train(config, workdir, console, parameter_table)
    check_config(config)
    count = len(config.stages)
    with locked(Path(workdir)):
        save_config(workdir, config)
        tokenizer = frozen_tokenizer(config, Path(workdir))
        newest, unfinished = _progress(config, workdir)
        check_stages(config, tokenizer, unfinished)
        for number in range(newest, count + 1):
            stage = stage_config(config, number)
            console.line(f'stage {number} of {count}: {_sizes(stage)}')
            previous = stage_folder(workdir, number - 1) if number > 1 else None
            folder = str(stage_folder(workdir, number))
            if not train(stage, folder, console, parameter_table, Stage(tokenizer, previous)):
                return False
        return True


def _progress(config: Config, workdir: str) -> tuple[int, int]:
    """Return the newest stage that has a checkpoint (else 1), and the first unfinished one. Earlier ones are finished.

    The folders of earlier stages may be gone.
    """
    numbers = range(1, len(config.stages) + 1)
    steps = [latest_step(stage_folder(workdir, number)) for number in numbers]
    needed = [stage_config(config, number).train.steps for number in numbers]
    started = hosts.broadcast_from_first_host([step is not None for step in steps])
    finished = hosts.broadcast_from_first_host(
        [step is not None and step >= count for step, count in zip(steps, needed)]
    )
    newest = max((number for number in numbers if started[number - 1]), default=1)
    return newest, newest + int(finished[newest - 1])


def _sizes(stage: Config) -> str:
    data = stage.data
    clips = f'{data.batch_size} clips of {data.frames} frames of {data.height}x{data.width}'
    return f'{stage.train.steps} steps of {clips}'


def check_stages(config: Config, tokenizer: Tokenizer, first: int) -> None:
    """Check stages from `first` on against the devices, the tokenizer, the model and the data.

    Raises:
      ConfigError: a stage cannot be trained; the message starts with its number.
    """
    for number in range(first, len(config.stages) + 1):
        with in_stage(number):
            _check_stage(stage_config(config, number), stage_config(config, 1), tokenizer)


def _check_stage(stage: Config, first: Config, tokenizer: Tokenizer) -> None:
    objective = make_objective(stage, tokenizer)
    for field in ('frames', 'height', 'width'):
        size, trained = getattr(stage.data, field), getattr(first.data, field)
        if size != trained and not objective.trunk.resizable:
            raise ConfigError(
                f'data.{field} = {size}, but stage 1 has {trained}, and parameters of system {stage.system!r} depend on'
                ' the size of clips: use the same frames, height and width in all stages'
            )
    mesh = make_mesh(stage.mesh)
    check_batch(mesh, stage.data.batch_size, stage.optim.accumulate)
    training_layout(objective, stage, mesh)
    check_latents(stage, tokenizer)
    check_clips(stage.data, stage.text)
