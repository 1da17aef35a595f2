"""The quickstart: a small MAGI on `bouncing_objects/shapes`, sized for 2 CPU cores.

    python -m launch.train --config configs/quickstart_autoencoder.py --workdir runs/quickstart/autoencoder
    python -m launch.train --config configs/quickstart.py --workdir runs/quickstart/magi

`bash launch/quickstart.sh` runs both commands and writes the report. Training takes 14 to 16 minutes on two threads of
a 2.8 GHz Xeon. The validation loss is 0.046, and five-frame prediction reaches 18.8 dB (the plain background: 14.1 dB).
`:digits` trains on handwritten digits. `:runlocal` runs a few steps.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default

VARIANTS = ('digits',)


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    shapes = 'digits' not in names
    config = default()
    config.data.source = 'bouncing_objects/shapes' if shapes else 'bouncing_objects/digits'
    config.data.flip_horizontal = shapes
    config.data.max_interval = 1
    config.data.batch_size = 4
    config.tokenizer.path = f'runs/quickstart{"" if shapes else "_digits"}/autoencoder/tokenizer'
    config.model.width = 96
    config.model.blocks = 4
    config.model.mlp_layers = 'temporal'
    config.model.heads = 4
    config.model.mlp_width = 384
    config.model.dropout = 0.0
    config.model.head.width = 96
    config.model.head.blocks = 2
    config.model.head.repeats = 2
    config.model.head.prediction = 'clean'
    config.model.head.readout = True
    config.model.head.bound_weight = 0.01
    config.masking.posterior_noise = False
    config.optim.name = 'muon'
    config.optim.learning_rate = 5e-3
    config.optim.warmup_steps = 100
    config.optim.schedule = 'linear'
    config.optim.decay_fraction = 0.5
    config.optim.ema_decay = 0.998
    config.optim.ema_warmup = True
    config.train.steps = 3_200
    config.train.eval_every = 1_600
    config.train.eval_batches = 16
    config.train.sample_every = 1_600
    config.train.checkpoint_every = 400
    config.train.keep_checkpoints = 2
    config.train.compute_dtype = 'float32'
    config.train.unroll = config.model.blocks
    config.sampler.mask_steps = 4
    config.sampler.denoise_steps = 10
    config.sampler.temperature = 0.5
    if 'runlocal' in names:
        config.tokenizer.kind = 'identity'
        config.tokenizer.path = ''
        config.tokenizer.channels = 3 * config.tokenizer.downsample**2
        config.model.width, config.model.blocks, config.model.mlp_width = 16, 2, 32
        config.model.head.width = 16
        config.data.frames, config.data.batch_size, config.data.max_interval = 4, 8, 2
        config.sampler.keep_frames = 2
        config.sampler.mask_steps, config.sampler.denoise_steps = 2, 4
        config.train.steps, config.train.unroll = 4, 1
        config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
    return config
