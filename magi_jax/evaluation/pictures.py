"""Arranges videos for viewing: real beside generated, with the given frames marked.

Dimension key: B clips, T frames, C context frames, H rows, W columns.
"""

import base64
import io

import numpy as np
from einops import rearrange, repeat
from PIL import Image

GIVEN, REAL, GENERATED = (255, 176, 32), (128, 134, 146), (64, 140, 255)  # border colours
PANEL = (17, 19, 24)
BORDER, GAP = 2, 4  # pixels


def side_by_side(real: np.ndarray, generated: np.ndarray, context: int, columns: int = 1) -> np.ndarray:
    """Arrange pairs of clips, real left and generated right, in rows of `columns` pairs.

    Border colours mark the kind of a frame: GIVEN for the first C frames, which are real on both sides, then REAL and
    GENERATED.

    Args:
      real: uint8 [B,T,H,W,3].
      generated: uint8 [B,T,H,W,3], context included.
      context: C.
      columns: divides B.

    Returns:
      uint8 [T,H',W',3], both sides even.

    Raises:
      ValueError: the clips are not of one shape, or `columns` does not divide B.
    """
    if real.shape != generated.shape or len(real) % columns:
        raise ValueError(
            f'cannot lay out {list(real.shape)} beside {list(generated.shape)} in rows of {columns}: '
            'the shapes must be equal and the clips fill the rows'
        )
    pairs = np.concatenate([_add_border(real, context, REAL), _add_border(generated, context, GENERATED)], axis=3)
    pairs = _padded(pairs, GAP // 2)
    grid = rearrange(pairs, '(row column) t h w c -> t (row h) (column w) c', column=columns)
    return _padded(grid, GAP // 2)


def add_borders(generated: np.ndarray, context: int) -> np.ndarray:
    """Add the borders of `side_by_side` to generated clips uint8 [B,T,H,W,3], context included."""
    return _add_border(generated, context, GENERATED)


def enlarge(video: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge each pixel to `scale` x `scale` pixels: uint8 [...,H,W,3] to [...,H*scale,W*scale,3]."""
    return repeat(video, '... h w c -> ... (h dy) (w dx) c', dy=scale, dx=scale)


def animation_uri(video: np.ndarray, fps: float, hold: float = 1.0) -> str:
    """Encode uint8 [T,H,W,3] as an endless lossless WebP data URI; the last frame stays `hold` seconds."""
    first, *others = (Image.fromarray(frame) for frame in video)
    durations = [round(1000 / fps)] * len(others) + [round(1000 * hold)]
    buffer = io.BytesIO()
    first.save(
        buffer, 'WEBP', save_all=True, append_images=others, duration=durations, loop=0, lossless=True, quality=60
    )
    return _data_uri('image/webp', buffer.getvalue())


def image_uri(frame: np.ndarray) -> str:
    """Encode uint8 [H,W,3] as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'PNG', optimize=True)
    return _data_uri('image/png', buffer.getvalue())


def _add_border(video: np.ndarray, context: int, colour: tuple[int, int, int]) -> np.ndarray:
    borders = np.asarray([GIVEN if frame < context else colour for frame in range(video.shape[1])], np.uint8)
    height, width = video.shape[2] + 2 * BORDER, video.shape[3] + 2 * BORDER
    result = repeat(borders, 't c -> b t h w c', b=len(video), h=height, w=width).copy()
    result[:, :, BORDER:-BORDER, BORDER:-BORDER] = video
    return result


def _padded(video: np.ndarray, width: int) -> np.ndarray:
    """Add PANEL-coloured pixels around uint8 [...,H,W,3]."""
    *lead, height, rows, channels = video.shape
    result = np.empty((*lead, height + 2 * width, rows + 2 * width, channels), np.uint8)
    result[:] = PANEL
    result[..., width:-width, width:-width, :] = video
    return result


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'
