"""MAGI on your own videos at 64 x 64, prepared by `launch.prepare_data`. The model has the size of the quickstart.

    python -m launch.prepare_data --dataset my_videos --source FOLDER
    python -m launch.train --config configs/own_videos.py:autoencoder --workdir runs/own/autoencoder
    python -m launch.encode_latents --config configs/own_videos.py --dataset my_latents
    python -m launch.train --config configs/own_videos.py --config.data.source=my_latents --workdir runs/own/magi
    python -m launch.sample --workdir runs/own/magi --frames 64 --context clip.mp4 --context_frames 5 --out runs/own/new

Training takes half an hour on 2 CPU cores. The quality depends on the videos. With an accelerator, raise `model.width`,
`model.blocks`, `data.batch_size` and `data.height` = `data.width`. `:runlocal` runs a few steps.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError
from magi_jax.config_files import import_config

VARIANTS = ('autoencoder',)


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = import_config('quickstart_autoencoder' if 'autoencoder' in names else 'quickstart').get_config()
    config.data.source = 'my_videos'
    config.data.flip_horizontal = True
    config.masking.posterior_noise = True
    if 'autoencoder' in names:
        # Half the quickstart's rate: at 4e-3 the loss on real videos spiked in 2 of 21 runs (magi_jax/data/README.md).
        config.optim.learning_rate = 2e-3
    else:
        config.tokenizer.path = 'runs/own/autoencoder/tokenizer'
        config.data.max_interval = 4
    if 'runlocal' in names:
        config.tokenizer.width = 8
        config.model.width, config.model.blocks, config.model.mlp_width, config.model.head.width = 16, 2, 32, 16
        config.data.frames = min(config.data.frames, 4)
        config.data.batch_size = 8
        config.sampler.keep_frames = config.sampler.mask_steps = 2
        config.sampler.denoise_steps = 4
        config.train.steps = 4
        config.train.log_every = 1
        config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
    return config
