"""Checks of config fields against each other, made before anything long runs.

Ranges of single fields are in `config/`, next to the checks that only one system needs.
"""

from magi_jax.config import Config, ConfigError, stage_config
from magi_jax.config.stages import in_stage

MAX_CLIPS = 2**31 - 1  # the number of a clip in a run is an int32


def check_config(config: Config) -> None:
    """Check the fields of a run, or of each of its stages, against each other.

    Raises:
      ConfigError: two fields contradict each other; the message names both, and the stage.
    """
    if not config.stages:
        _check_run(config)
    elif config.objective == 'autoencoder':
        raise ConfigError('config.stages holds stages, but objective = autoencoder has none: set config.stages = ()')
    for number in range(1, len(config.stages) + 1):
        with in_stage(number):
            _check_run(stage_config(config, number))


def _check_run(config: Config) -> None:
    data, optim, steps = config.data, config.optim, config.train.steps
    if steps * data.batch_size > MAX_CLIPS:
        raise ConfigError(
            f'train.steps = {steps} x data.batch_size = {data.batch_size} is more than {MAX_CLIPS} clips:'
            f' choose train.steps up to {MAX_CLIPS // data.batch_size}'
        )
    if data.batch_size % optim.accumulate:
        raise ConfigError(
            f'data.batch_size = {data.batch_size} is not a multiple of optim.accumulate = {optim.accumulate}:'
            f' choose data.batch_size = {optim.accumulate * -(-data.batch_size // optim.accumulate)}'
        )
    if data.context_frames > data.frames:
        raise ConfigError(
            f'data.context_frames = {data.context_frames} is more than data.frames = {data.frames}:'
            f' choose data.context_frames from 0 to {data.frames}'
        )
    if config.objective == 'masked_diffusion':
        _check_masking(config)
        config.check_model()
        check_sampler(config)


def _check_masking(config: Config) -> None:
    masking = config.masking
    if masking.ratio_min > masking.ratio_max:
        raise ConfigError(
            f'masking.ratio_min = {masking.ratio_min} is more than masking.ratio_max = {masking.ratio_max}:'
            ' lower one or raise the other'
        )


def check_sampler(config: Config) -> None:
    """Check the sampler's fields against the model to sample from.

    Raises:
      ConfigError: two fields contradict each other; the message names both.
    """
    sampler, timesteps = config.sampler, config.model.head.timesteps
    if sampler.start >= timesteps:
        raise ConfigError(
            f'sampler.start = {sampler.start} is not a timestep of model.head.timesteps = {timesteps}:'
            f' choose sampler.start from 1 to {timesteps - 1}'
        )
    if sampler.denoise_steps > sampler.start + 1:
        raise ConfigError(
            f'sampler.denoise_steps = {sampler.denoise_steps} is more than the {sampler.start + 1} timesteps from'
            f' sampler.start = {sampler.start} on: choose sampler.denoise_steps from 2 to {sampler.start + 1}'
        )
    if sampler.temperature_decay and sampler.temperature_drop:
        raise ConfigError(
            f'sampler.temperature_decay = {sampler.temperature_decay} and sampler.temperature_drop ='
            f' {sampler.temperature_drop} are two rules for later frames: set one of them to 0'
        )
    if sampler.temperature_drop > sampler.temperature:
        raise ConfigError(
            f'sampler.temperature_drop = {sampler.temperature_drop} is more than sampler.temperature ='
            f' {sampler.temperature}: choose sampler.temperature_drop from 0 to {sampler.temperature}'
        )
    config.check_sampler()
