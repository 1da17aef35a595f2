"""Known faults of clips uint8 [B,16,H,W,3], for scores to find."""

import numpy as np
from einops import rearrange
from scipy.ndimage import gaussian_filter


def noise(video):
    """A standard deviation of 10 % of the range."""
    added = np.random.default_rng(0).normal(0, 25.5, video.shape)
    return np.clip(np.rint(video + added), 0, 255).astype(np.uint8)


def blur(video):
    """1.2 pixels."""
    blurred = gaussian_filter(video.astype(np.float32), (0, 0, 1.2, 1.2, 0))
    return np.rint(blurred).astype(np.uint8)


def freeze(video):
    """Nothing moves in the second half."""
    half = video.shape[1] // 2
    return np.concatenate([video[:, :half], np.repeat(video[:, half - 1 : half], half, axis=1)], axis=1)


def shuffle(video):
    """Blocks of four frames in another order."""
    blocks = rearrange(video, 'b (block t) h w c -> b block t h w c', t=4)
    return rearrange(blocks[:, [2, 0, 3, 1]], 'b block t h w c -> b (block t) h w c')


def half_speed(video):
    """Every frame of the first half twice."""
    return np.repeat(video[:, : video.shape[1] // 2], 2, axis=1)


CORRUPTIONS = {'noise': noise, 'blur': blur, 'freeze': freeze, 'shuffle': shuffle, 'half speed': half_speed}
