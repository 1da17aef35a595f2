"""MAGI on Kinetics-600 at 256 x 256: the paper's model and recipe (arXiv 2501.12389 §5.1, §A.3), for TPU slices.

    python -m launch.compile --config configs/magi_kinetics600.py --topology v5e:4x4
    python -m launch.train --config configs/magi_kinetics600.py:autoencoder --workdir runs/kinetics600/autoencoder
    python -m launch.train --config configs/magi_kinetics600.py --workdir runs/kinetics600/magi

The first command needs no TPU and tells whether a slice is large enough. The videos are read from `data/kinetics600`.
20 blocks of width 1280, batch 256, learning rate 2e-4, 150 passes over 480,000 videos. The paper encodes 17 frames
with the 3D autoencoder of OmniTokenizer to 5 latent frames of 8 channels; here our own framewise autoencoder (f8, 8
channels), trained by `:autoencoder`, takes its place, so the model sees 16 frames and a step costs three times as much.
`:heads128`: 10 heads of 128 values instead of 16 of 80. Neither was trained yet: there is no
number to expect. `:runlocal` for a few steps on a CPU.

As it stands for 16 chips of v5e; `:v6e` and `:v5p` for 16 of those, `:v5e256` for v5e:16x16.
"""

from ml_collections import ConfigDict

from configs.magi_ucf101 import SLICES, VARIANTS, fit_slice, run_locally, train_autoencoder
from magi_jax.config import ConfigError, default


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default()
    config.data.source = 'video_folder'
    config.data.path = 'data/kinetics600'
    config.data.height = config.data.width = 256
    config.data.threads = 16
    config.data.batch_size = 256
    config.tokenizer.path = 'runs/kinetics600/autoencoder/tokenizer'
    config.tokenizer.channels = 8
    config.tokenizer.width = 128
    config.tokenizer.encoder_blocks = 2
    config.tokenizer.decoder_blocks = 4
    config.optim.learning_rate = 2e-4
    config.train.steps = 281_250
    fit_slice(config, next((name for name in names if name in SLICES), 'v5e'))
    if 'heads128' in names:
        config.model.heads = 10
    if 'autoencoder' in names:
        train_autoencoder(config)
    if 'runlocal' in names:
        run_locally(config)
    return config
