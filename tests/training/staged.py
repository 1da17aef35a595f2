"""A tiny VideoMAR run of two stages, on a folder of videos: the second has longer, larger clips."""

import numpy as np

from magi_jax.config import default
from magi_jax.data.video_file import write_mp4

STEPS = 4, 6  # of the two stages
FILE = """
from tests.training.staged import staged_config


def get_config(arg=''):
    return staged_config({videos!r})
"""


def staged_config(videos, system='videomar'):
    """As the runlocal variants: identity as tokenizer, float32."""
    config = default(system)
    config.data.source, config.data.path, config.data.threads, config.data.max_interval = 'video_folder', videos, 1, 1
    config.data.frames, config.data.height, config.data.width, config.data.batch_size = 2, 16, 16, 8
    config.tokenizer.kind, config.tokenizer.downsample, config.tokenizer.channels = 'identity', 8, 192
    config.model.width, config.model.blocks, config.model.heads, config.model.mlp_width = 16, 1, 2, 32
    config.model.patch = 1
    if system == 'videomar':
        config.model.rope_split = (4, 2, 2)
    config.model.head.width, config.model.head.blocks, config.model.head.repeats = 16, 1, 1
    config.optim.warmup_steps, config.optim.learning_rate, config.optim.ema_decay = 2, 1e-2, 0.9
    config.train.checkpoint_every, config.train.eval_batches, config.train.log_every = 2, 1, 1
    config.train.eval_every = config.train.sample_every = 1000
    config.train.compute_dtype = 'float32'
    config.sampler.mask_steps, config.sampler.denoise_steps, config.sampler.keep_frames = 2, 2, 1
    config.stages = (
        {'steps': STEPS[0]},
        {'steps': STEPS[1], 'frames': 3, 'height': 24, 'width': 32, 'batch_size': 16, 'accumulate': 2},
    )
    return config


def write_videos(root, train=3, frames=5):
    """A folder of videos of a moving square."""
    for number in range(train + 1):
        video = np.full((frames, 32, 32, 3), 30 * number, np.uint8)
        for t in range(frames):
            video[t, 2 * t : 2 * t + 9, number : number + 9] = (250, 120, 7)
        split = root / ('train' if number < train else 'validation')
        split.mkdir(exist_ok=True)
        write_mp4(split / f'{number}.mp4', video, 8)
    return root
