"""The tokenizer of the quickstart: a KL autoencoder (f8, 4 channels) on `bouncing_objects/shapes`.

    python -m launch.train --config configs/quickstart_autoencoder.py --workdir runs/quickstart/autoencoder

Training takes two minutes on two threads of a 2.8 GHz Xeon. Reconstructions of unseen videos reach 33.2 dB. `:wide` has
16 channels, is 32 times as large and trains on 32 times as many frames: 45.9 dB after five minutes of an H200.
`:digits` trains on handwritten digits. `:runlocal` runs a few steps.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default

VARIANTS = ('digits', 'wide')


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default()
    config.objective = 'autoencoder'
    config.data.source = 'bouncing_objects/digits' if 'digits' in names else 'bouncing_objects/shapes'
    config.data.frames = 1
    config.data.max_interval = 1
    config.data.batch_size = 24
    config.data.flip_horizontal = 'digits' not in names
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 50
    config.optim.schedule = 'cosine'
    config.optim.ema_decay = 0.99
    config.optim.ema_warmup = True
    config.train.steps = 2000
    config.train.eval_every = 1000
    config.train.eval_batches = 2
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.train.compute_dtype = 'float32'
    if 'wide' in names:
        config.data.frames, config.data.batch_size = 8, 16
        config.tokenizer.channels, config.tokenizer.width = 16, 256
        config.tokenizer.encoder_blocks, config.tokenizer.decoder_blocks = 2, 6
        config.autoencoder_loss.l1, config.autoencoder_loss.kl = 0.1, 1e-5
        config.optim.learning_rate, config.optim.warmup_steps, config.optim.ema_decay = 6e-4, 500, 0.999
        config.optim.b2, config.optim.clip_norm = 0.99, 0.3
        config.train.steps = 12_000
    if 'runlocal' in names:
        config.tokenizer.width = 8
        config.train.steps = 4
        config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
        config.data.batch_size = 8
    return config
