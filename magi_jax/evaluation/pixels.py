"""Pixel metrics of frames, and baselines that need no model.

Dimension key: B clips, T frames, L predicted frames, H rows, W columns.
"""

import dm_pix
import jax
import numpy as np
from einops import rearrange, reduce, repeat

MAX_PSNR = 100.0  # dB of equal frames, because infinity would make every mean infinite
FRAMES_AT_ONCE = 256


def psnr(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each frame, with the mean square over pixels and channels.

    Args:
      video: uint8 [...,H,W,3].
      reference: uint8, the same shape.

    Returns:
      float64 [...] in dB, at most MAX_PSNR. The usual protocol averages dB over clips, not errors.

    Raises:
      ValueError: the shapes differ or the values are not uint8.
    """
    _check_pair(video, reference)
    squares = np.square(video.astype(np.float32) - reference.astype(np.float32))
    error = reduce(squares.astype(np.float64), '... h w c -> ...', 'mean')
    return 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 10 ** (MAX_PSNR / 10)))


def ssim(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each frame, the mean over pixels and channels (Wang et al., 2004).

    Arguments and errors are those of `psnr`. The result is float32 [...], 1 for equal frames.
    """
    _check_pair(video, reference)
    pairs = [rearrange(x, '... h w c -> (...) h w c') for x in (video, reference)]
    parts = [_ssim(*(x[i : i + FRAMES_AT_ONCE] for x in pairs)) for i in range(0, len(pairs[0]), FRAMES_AT_ONCE)]
    return np.concatenate(parts).reshape(video.shape[:-3])


@jax.jit
def _ssim(frames: jax.Array, reference: jax.Array) -> jax.Array:
    return dm_pix.ssim(frames / np.float32(255), reference / np.float32(255))


def _check_pair(video: np.ndarray, reference: np.ndarray) -> None:
    if video.shape != reference.shape or {video.dtype, reference.dtype} != {np.dtype(np.uint8)}:
        raise ValueError(
            f'only uint8 videos of one shape can be compared, not {video.dtype} {list(video.shape)} '
            f'with {reference.dtype} {list(reference.shape)}'
        )


def repeat_last_context(context: np.ndarray, frames: int) -> np.ndarray:
    """Return the baseline that repeats the last frame: uint8 [B,T,H,W,3] to [B,L,H,W,3], L = `frames`."""
    return repeat(context[:, -1], 'b h w c -> b l h w c', l=frames)


def plain_background(context: np.ndarray, frames: int) -> np.ndarray:
    """Return the baseline without objects: the median colour of each context, as uint8 [B,L,H,W,3], L = `frames`."""
    colour = np.median(rearrange(context, 'b t h w c -> b (t h w) c'), axis=1).astype(np.uint8)
    return repeat(colour, 'b c -> b l h w c', l=frames, h=context.shape[2], w=context.shape[3])


BASELINES = {'repeat_last_context': repeat_last_context, 'plain_background': plain_background}
