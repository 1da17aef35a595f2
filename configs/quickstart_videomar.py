"""The quickstart of VideoMAR: a small text-to-video model on `bouncing_objects/captions`, sized for 2 CPU cores.

    python -m launch.train --config configs/quickstart_autoencoder.py --workdir runs/quickstart/autoencoder
    python -m launch.encode_text --dataset bouncing_objects/captions --encoder words --length 16 --width 64
    python -m launch.train --config configs/quickstart_videomar.py --workdir runs/quickstart_videomar/videomar
    python -m launch.sample --workdir runs/quickstart_videomar/videomar --prompt 'a red disc moves up' --out runs/red
    python -m launch.evaluate --workdir runs/quickstart_videomar/videomar --protocol captions_text --out runs/captions

By default every frame is a target, as in MAGI's complete teacher forcing. `:single` masks one frame of each clip, as in
the VideoMAR paper, which learns more slowly. `:runlocal` runs a few steps; it reads the encoded text as well.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default
from magi_jax.config_files import import_config

VARIANTS = ('single',)


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    quickstart = import_config('quickstart').get_config()
    config = default('videomar')
    config.data.source = 'bouncing_objects/captions'
    config.text.encoder, config.text.length, config.text.width = 'words', 16, 64
    config.data.batch_size = 8
    config.data.frames = 8
    config.data.flip_horizontal = False
    config.tokenizer.path = 'runs/quickstart/autoencoder/tokenizer'
    config.model.width = 96
    config.model.blocks = 6
    config.model.heads = 4
    config.model.mlp_width = 384
    config.model.patch = 2
    config.model.rope_split = (8, 8, 8)
    if 'single' not in names:
        config.model.teacher_forcing = 'complete'
        config.masking.target_frames = 'every'
    config.masking.first_frame_loss = True
    config.masking.posterior_noise = False
    # Few tokens of the first frame show what the text names, so the model must learn the last hidden ones as well.
    config.masking.ratio_min, config.masking.ratio_std = 0.05, 0.6
    config.optim, config.train = quickstart.optim, quickstart.train
    for field in config.model.head:
        config.model.head[field] = quickstart.model.head[field]
    config.train.steps = 2_400
    config.train.eval_every = config.train.sample_every = 1_200
    config.train.unroll = config.model.blocks
    config.sampler.denoise_steps = quickstart.sampler.denoise_steps
    config.sampler.mask_steps = 16
    config.sampler.temperature = 0.7
    config.sampler.temperature_decay = 3.0
    config.sampler.guidance, config.sampler.guidance_schedule = 5.0, 'constant'
    config.sampler.long_video, config.sampler.keep_frames = 'slide', 4
    config.sampler.token_clip = 3.0
    if 'runlocal' in names:
        run_locally(config)
    return config


def run_locally(config: ConfigDict) -> None:
    config.tokenizer.kind = 'identity'
    config.tokenizer.path = ''
    config.tokenizer.channels = 3 * config.tokenizer.downsample**2
    config.model.width, config.model.blocks, config.model.mlp_width = 32, 2, 32
    config.model.heads, config.model.rope_split = 2, (8, 4, 4)
    config.model.head.width = 16
    config.data.frames, config.data.batch_size = 4, 8
    config.sampler.mask_steps, config.sampler.denoise_steps, config.sampler.keep_frames = 2, 4, 2
    config.train.steps, config.train.unroll = 4, 1
    config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
