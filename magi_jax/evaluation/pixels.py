"""Frames compared pixel by pixel, and the predictions that need no model.

B clips, T frames, L predicted frames, H rows, W columns.
"""

import numpy as np
from einops import rearrange, reduce, repeat

MAX_PSNR = 100.0  # dB, given to equal frames: infinity spoils every mean


def psnr(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame, the mean square taken over its pixels and channels.

    Args:
      video: uint8 [...,H,W,3].
      reference: uint8, the same shape.

    Returns:
      float64 [...] in dB, at most MAX_PSNR. Average the dB over clips, not the errors: that is the usual protocol.

    Raises:
      ValueError: the shapes differ or the values are not uint8.
    """
    if video.shape != reference.shape or {video.dtype, reference.dtype} != {np.dtype(np.uint8)}:
        raise ValueError(
            f'psnr compares uint8 videos of one shape, not {video.dtype} {list(video.shape)} '
            f'with {reference.dtype} {list(reference.shape)}'
        )
    squares = np.square(video.astype(np.float32) - reference.astype(np.float32))
    error = reduce(squares.astype(np.float64), '... h w c -> ...', 'mean')
    return 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 10 ** (MAX_PSNR / 10)))


def repeat_last_context(context: np.ndarray, frames: int) -> np.ndarray:
    """Baseline: nothing moves any more. uint8 [B,T,H,W,3] -> [B,L,H,W,3], L = `frames`."""
    return repeat(context[:, -1], 'b h w c -> b l h w c', l=frames)


def plain_background(context: np.ndarray, frames: int) -> np.ndarray:
    """Baseline: nothing is there. Each clip's median colour over its context, uint8 [B,T,H,W,3] -> [B,L,H,W,3]."""
    colour = np.median(rearrange(context, 'b t h w c -> b (t h w) c'), axis=1).astype(np.uint8)
    return repeat(colour, 'b c -> b l h w c', l=frames, h=context.shape[2], w=context.shape[3])


BASELINES = {'repeat_last_context': repeat_last_context, 'plain_background': plain_background}
