"""MAGI and VideoMAR on equal terms: data, tokens, steps, seeds, loss, sampler settings and about equal parameters.

    python -m launch.compare_systems --config configs/compare_systems.py --workdir runs/compare

This trains both on `bouncing_objects/shapes`, evaluates them and writes one table. The same command resumes after an
interruption. Both learn by complete teacher forcing, so that every frame is a target. To train one by hand, use
`python -m launch.train --config configs/compare_systems.py:videomar --workdir FOLDER`. `:runlocal` runs a few steps.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError
from magi_jax.config_files import import_config

VARIANTS = ('videomar',)
SYSTEMS = {'magi': '', 'videomar': 'videomar'}  # system -> its variants


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    local = 'runlocal' if 'runlocal' in names else ''
    magi = import_config('quickstart').get_config(local)
    magi.sampler.opening_temperature = magi.sampler.temperature
    config = magi
    if 'videomar' in names:
        config = import_config('quickstart_videomar').get_config(local)
        config.text.encoder = ''
        for group in ('data', 'tokenizer', 'optim', 'train'):
            setattr(config, group, getattr(magi, group))
        config.train.unroll = config.model.blocks
        for field in ('ratio_mean', 'ratio_std', 'ratio_min', 'ratio_max', 'first_frame_loss', 'posterior_noise'):
            config.masking[field] = magi.masking[field]
        for field in config.sampler:
            config.sampler[field] = magi.sampler[field]
    if not local:
        config.train.steps = 1_000
    return config
