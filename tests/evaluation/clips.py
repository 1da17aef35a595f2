"""Real clips, and a stand-in for a model: the same clips, blurred and noisy."""

import numpy as np

from magi_jax.data.builders import bouncing_objects as bouncing

KEYS = ('labels', 'colours', 'centres')


def real_clips(count, frames):
    """Videos uint8 [B,T,64,64,3] and their labels, as `pipeline.eval_batches` gives them."""
    examples = [bouncing.make_video('shapes', 'test', index) for index in range(count)]
    labels = {key: np.stack([example[key] for example in examples]) for key in KEYS}
    labels['centres'] = labels['centres'][:, :frames]
    return np.stack([example['frames'][:frames] for example in examples]), labels


def spoil(video, std, blur=False, seed=0):
    """Adds noise of this standard deviation, after a blur with a [1,2,1] kernel."""
    frames = video.astype(np.float32)
    for axis in (-3, -2) if blur else ():
        frames = (np.roll(frames, 1, axis) + 2 * frames + np.roll(frames, -1, axis)) / 4
    noise = np.random.default_rng(seed).normal(0, std, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
