"""A run's folder as training leaves it, with random weights: made in a second."""

import json

import jax
import numpy as np

from magi_jax.checkpoint import Checkpoints, save_config
from magi_jax.config import (
    DataConfig,
    HeadConfig,
    MagiConfig,
    MagiHeadConfig,
    MagiModelConfig,
    MagiSamplerConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VideomarConfig,
    VideomarModelConfig,
    VideomarSamplerConfig,
)
from magi_jax.objectives.api import make_objective
from magi_jax.text_encoders.api import describe, keep_description, make_encoder
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.folder import save_tokenizer
from tests.random_params import random_params

STEP = 7
# bfloat16: what a sampler reads is not what is saved.
CONFIG = MagiConfig(
    data=DataConfig(path='/home/somebody/videos', height=16, width=16, frames=4, max_interval=2, batch_size=8),
    tokenizer=TokenizerConfig(path='/home/somebody/tokenizer', channels=3, downsample=4, width=4, decoder_blocks=1),
    model=MagiModelConfig(width=16, blocks=1, heads=2, mlp_width=16, patch=2, head=MagiHeadConfig(width=16, blocks=1)),
    train=TrainConfig(compute_dtype='bfloat16'),
    sampler=MagiSamplerConfig(mask_steps=2, denoise_steps=3, keep_frames=2),
)
# Reads text.
VIDEOMAR = VideomarConfig(
    data=DataConfig(source='bouncing_objects/captions', height=16, width=16, frames=4, max_interval=1, batch_size=8),
    text=TextConfig(encoder='words', length=10, width=16),
    tokenizer=TokenizerConfig(kind='identity', channels=48, downsample=4),
    model=VideomarModelConfig(
        width=16, blocks=1, heads=2, mlp_width=16, patch=2, rope_split=(4, 2, 2), head=HeadConfig(width=16, blocks=1)
    ),
    train=TrainConfig(compute_dtype='float32'),
    sampler=VideomarSamplerConfig(mask_steps=2, denoise_steps=3),
)


def make_run(folder, config=CONFIG):
    """Checkpoint, tokenizer, metrics, config and text encoder; returns the EMA parameters."""
    if config.tokenizer.kind == 'identity':
        tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    else:
        blank = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), blank.params)
        tokenizer = blank.replace(params=params, latent_std=blank.latent_std * 0.6)
        save_tokenizer(tokenizer, folder / 'tokenizer', {'dataset': 'noise', 'clips': 17})
    save_config(folder, config)
    if config.text.encoder:
        keep_description(folder, describe(make_encoder(config.text.encoder, config.text.length, config.text.width)))
    params = random_params(make_objective(config, tokenizer).init, scale=0.2)
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(STEP, {'ema': params})
        checkpoints.wait()
    losses = {'step': STEP, 'time': 0.0, 'values': {'train/loss': 0.25, 'validation/loss': 0.5}}
    (folder / 'metrics.jsonl').write_text(json.dumps(losses) + '\n')
    return params
