"""The study of `study_strategies` on one H200: a wider and deeper model, and 12 times as many clips.

    python -m launch.study --config configs/study_h200.py --workdir runs/study_h200

All variants share data, steps, masks and seeds. `:runlocal` runs a few steps.
"""

from ml_collections import ConfigDict

from magi_jax.config_files import import_config

study_strategies = import_config('study_strategies')
VARIANTS, PLAN, RUNLOCAL_PLAN = study_strategies.VARIANTS, study_strategies.PLAN, study_strategies.RUNLOCAL_PLAN


def get_config(arg: str = '') -> ConfigDict:
    config = study_strategies.get_config(arg)
    if 'runlocal' not in arg.split(','):
        config.data.batch_size = 32
        config.model.width, config.model.blocks, config.model.heads, config.model.mlp_width = 128, 4, 4, 512
        config.model.head.width = 128
        config.train.steps = 1_500
        config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 1_500
    return config
