"""MAGI on Kinetics-600 at 256 x 256: the paper's model and recipe (arXiv 2501.12389 §5.1, §A.3), for TPU slices.

    python -m launch.prepare_data --dataset kinetics600 --source K600 --height 256 --width 256
    python -m launch.convert_weights --kind omni --source omnitokenizer.ckpt --out tokenizers/omni
    python -m launch.measure_statistics --config configs/magi_kinetics600.py
    python -m launch.encode_latents --config configs/magi_kinetics600.py --dataset k600_omni --dtype float16
    python -m launch.compile --config configs/magi_kinetics600.py --topology v5e:4x4
    python -m launch.train --config configs/magi_kinetics600.py --config.data.source=k600_omni --workdir runs/k600/magi

20 blocks of width 1280, batch 256, learning rate 2e-4, 150 passes over 480,000 videos, in the latents of OmniTokenizer:
17 frames become 5 latent frames of 8 channels, the five frames of context two of them. Omni's latents see the future,
so the first five frames are encoded alone, in training as in sampling (A17).

`:own`: our own framewise autoencoder (f8, 8 channels), trained by `:autoencoder`, where no published weights are at
hand; the model then sees 16 frames, and a step costs three times as much. `:heads128`: 10 heads of 128 values instead
of 16 of 80.

To reach, five-frame prediction, FVD of 50,000 videos at 64 x 64 (the paper's table 2): 11.5. 9.3e20 FLOPs of the model:
at 40 % of the peak rate (assumed, not measured) 205 hours on a v5e:4x4, or 81 hours on 8 H200. Not trained yet.
`:runlocal` for a few steps on a CPU.

As it stands for 16 chips of v5e; `:v6e` and `:v5p` for 16 of those, `:v5e256` for v5e:16x16.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default
from magi_jax.config_files import import_config

magi_ucf101 = import_config('magi_ucf101')

VARIANTS = ('own', 'autoencoder', 'heads128', *list(magi_ucf101.SLICES)[1:])  # the first slice is the default


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default()
    config.data.source = 'kinetics600'
    config.data.height = config.data.width = 256
    config.data.threads = 16
    config.data.batch_size = 256
    config.data.frames, config.data.context_frames = 17, 5
    config.tokenizer.kind = 'omni'
    config.tokenizer.path = 'tokenizers/omni'
    config.tokenizer.channels = 8
    config.tokenizer.width = 512
    config.optim.learning_rate = 2e-4
    config.train.steps = 281_250
    magi_ucf101.fit_slice(config, next((name for name in names if name in magi_ucf101.SLICES), 'v5e'))
    if 'heads128' in names:
        config.model.heads = 10
    if 'own' in names or 'autoencoder' in names:
        config.tokenizer.path = 'runs/kinetics600/autoencoder/tokenizer'
        magi_ucf101.use_own_tokenizer(config)
    if 'autoencoder' in names:
        magi_ucf101.train_autoencoder(config)
    if 'runlocal' in names:
        magi_ucf101.run_locally(config)
    return config
