"""MAGI on Kinetics-600 at 256 x 256: the paper's model and recipe (arXiv 2501.12389 §5.1, §A.3), for TPU slices.

    python -m launch.prepare_data --dataset kinetics600 --source K600 --height 256 --width 256
    python -m launch.convert_weights --kind omni --source omnitokenizer.ckpt --out tokenizers/omni
    python -m launch.measure_statistics --config configs/magi_kinetics600.py
    python -m launch.encode_latents --config configs/magi_kinetics600.py --dataset k600_omni --dtype float16
    python -m launch.compile --config configs/magi_kinetics600.py --topology v5e:4x4
    python -m launch.train --config configs/magi_kinetics600.py --config.data.source=k600_omni --workdir runs/k600/magi

The model has 20 blocks of width 1280. It trains with batch 256 and learning rate 2e-4 for 150 epochs of 480,000 videos.
Its data are latents of OmniTokenizer: 17 frames become 5 latent frames with 8 channels, and the 5 context frames become
2 of them. The latents of OmniTokenizer depend on later frames. Therefore the first five frames are encoded alone, both
in training and in sampling (A17).

Variants:

    own          use our own frame-wise autoencoder (f8, 8 channels), for users without the published weights. The model
                 then trains on 16 frames, and a step costs three times as much.
    autoencoder  train that autoencoder.
    heads128     use 10 heads of 128 values instead of 16 heads of 80.
    v6e, v5p     set up for 16 chips of v6e or v5p; the default is 16 chips of v5e.
    v5e256       set up for a slice v5e:16x16.
    runlocal     a few steps on a CPU.

The paper reports FVD 11.5 for five-frame prediction, with 50,000 videos at 64 x 64 (table 2). Training takes 9.3e20
model FLOPs: 205 hours on v5e:4x4 or 81 hours on 8 H200, at an assumed 40 % of the peak rate. It was not trained yet.
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
