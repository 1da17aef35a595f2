"""The paper's Fig. 5b and 5c on two CPU cores: CTF against MTF, with and without each of its two strategies.

    python -m launch.study --config configs/study_strategies.py --workdir runs/study

This trains and evaluates every run of PLAN and writes the table. The same command resumes after an interruption. All
variants share data, steps, masks and seeds. To train one run by hand, use
`python -m launch.train --config configs/study_strategies.py:masked,no_noise --workdir FOLDER`. `:runlocal` runs a few
steps.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError
from magi_jax.config_files import import_config
from magi_jax.evaluation import study

VARIANTS = ('masked', 'one_interval', 'no_noise')
PLAN = study.Plan(
    tokenizer='configs/quickstart_autoencoder.py',
    runs={
        '': 3,
        'masked': 3,
        'one_interval': 1,
        'no_noise': 1,
        'one_interval,no_noise': 1,
        'masked,one_interval': 1,
        'masked,no_noise': 1,
        'masked,one_interval,no_noise': 1,
    },
    protocols={study.CLIPS: 'shapes_first_frame_study', study.LONG: 'shapes_first_frame_long_study'},
)
RUNLOCAL_PLAN = study.Plan(
    tokenizer='configs/quickstart_autoencoder.py:runlocal',
    runs={'': 2, 'masked,no_noise': 1},
    protocols={kind: name.replace('study', 'runlocal') for kind, name in PLAN.protocols.items()},
)


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = import_config('quickstart').get_config('runlocal' if 'runlocal' in names else '')
    config.data.max_interval = 1 if 'one_interval' in names else 3
    if 'masked' in names:
        config.model.teacher_forcing = 'masked'
    if 'no_noise' in names:
        config.masking.noise_std = (0.0,)
    if 'runlocal' not in names:
        config.model.width, config.model.blocks, config.model.mlp_width = 64, 3, 256
        config.model.head.width = 64
        config.train.steps = 1_000
        config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 1_000
    return config
