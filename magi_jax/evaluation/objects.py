"""Detects the coloured shapes of `bouncing_objects` in real or generated frames, also when they overlap.

No two objects of a clip share a colour, so colour identifies an object. Its position and shape are those of the
template with the best overlap. Template pixels that another object covers do not count.

Dimension key: B clips, T frames, O object slots (colour -1 where there is none), H rows, W columns, S shapes, P palette
colours.
"""

import dataclasses

import numpy as np
from einops import rearrange, reduce

from magi_jax.data.builders import drawing

BLACK, FOREIGN = -1, -2  # classes of pixels without a palette colour
MIN_OPACITY = 0.5
MAX_RESIDUAL = 60.0  # largest RGB distance of a pixel to a darker version of a palette colour
AREA_RANGE = (0.5, 1.7)  # range of visible area / expected visible area
MIN_VISIBLE = 1 / 8  # least fraction of the full area; less is like a border
MIN_BODY = 25  # least pixels of an unexpected object, borders not counted

_REACH = 13  # pixels from the centre that contain the largest template
_PALETTE = np.asarray(list(drawing.PALETTE.values()), np.float32)


@dataclasses.dataclass(frozen=True)
class Objects:
    """Detected objects. Entries of absent slots and of objects not found are NaN, -1 or False."""

    present: np.ndarray  # bool [B,O], True if the clip has this object
    found: np.ndarray  # bool [B,T,O], True if the visible area is within AREA_RANGE of that of the true shape
    area: np.ndarray  # float32 [B,T,O], visible pixels / full area of the true shape
    hidden: np.ndarray  # float32 [B,T,O], fraction of the fitted true shape that other objects cover, in [0, 1]
    centre: np.ndarray  # float32 [B,T,O,2], (x, y) in pixels as in bouncing_objects
    shape: np.ndarray  # int32 [B,T,O], index into bouncing_objects.SHAPES
    count: np.ndarray  # int32 [B,T], visible objects plus unexpected ones
    extra: np.ndarray  # int32 [B,T], pixels of objects in colours that the clip does not have


def find_objects(video: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> Objects:
    """Find every object in every frame.

    Args:
      video: uint8 [B,T,H,W,3], real or generated.
      labels: int [B,O], true shapes, indices into bouncing_objects.SHAPES; -1 = no object.
      colours: int [B,O], indices into bouncing_objects.PALETTE; -1 = no object.

    Raises:
      ValueError: a clip has no coloured objects (digits are white and cannot be told apart).
    """
    if not (colours >= 0).any(axis=1).all():
        raise ValueError('objects are found by colour; this data has none: use bouncing_objects/shapes')
    clips = [_find_in_clip(*clip) for clip in zip(video, labels, colours)]
    return Objects(colours >= 0, *(np.stack(values) for values in zip(*clips)))


def classify_pixels(frames: np.ndarray) -> np.ndarray:
    """Classify pixels uint8 [...,H,W,3] by palette index, or BLACK or FOREIGN: int8 [...,H,W].

    A pixel counts as a palette colour at any opacity over black, so that dark borders belong to their object.
    """
    pixels = frames.astype(np.float32)
    opacity = np.clip(pixels @ (_PALETTE / np.square(_PALETTE).sum(axis=1, keepdims=True)).T, 0.0, 1.0)
    # |p - a c|^2 without the [...,P,3] differences
    residual = np.square(pixels).sum(axis=-1, keepdims=True) - 2 * opacity * (pixels @ _PALETTE.T)
    residual = residual + np.square(opacity) * np.square(_PALETTE).sum(axis=1)
    nearest = residual.argmin(axis=-1)
    opaque = np.take_along_axis(opacity, nearest[..., None], -1)[..., 0] >= MIN_OPACITY
    explained = residual.min(axis=-1) <= MAX_RESIDUAL**2
    return np.where(opaque, np.where(explained, nearest, FOREIGN), BLACK).astype(np.int8)


def shape_templates() -> np.ndarray:
    """Return the pixels of each shape centred at the middle, a pixel corner: bool [S,2R,2R]."""
    offset = np.arange(-_REACH, _REACH) + 0.5
    dy, dx = offset[:, None], offset[None, :]
    disc = np.hypot(dx, dy) <= drawing.DISC_RADIUS
    square = np.maximum(abs(dx), abs(dy)) <= drawing.SQUARE_SIDE / 2
    triangle = np.maximum(dy, abs(dx) * np.sqrt(0.75) - dy / 2) <= drawing.TRIANGLE_INRADIUS
    masks = {'disc': disc, 'square': square, 'triangle': triangle}
    return np.stack([masks[name] for name in drawing.SHAPES])


def _find_in_clip(video: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the fields of `Objects` after `present`, without axis B."""
    classes = classify_pixels(video)
    own = (classes[:, None] == colours[:, None, None]) & (colours >= 0)[:, None, None]  # [T,O,H,W]
    any_own = own.any(axis=1)
    templates = shape_templates()
    fit, row, column = _fit(own, ~any_own, templates)  # [S,T,O]
    slots = np.arange(len(colours))
    true = np.maximum(labels, 0)
    row, column = row[true, :, slots].T, column[true, :, slots].T  # [T,O]
    drawn = _draw(templates[true], row, column, video.shape[1:3])  # [T,O,H,W]
    visible = drawn & ~(any_own[:, None] & ~own)
    full = reduce(templates, 's h w -> s', 'sum')[true]
    area, expected, whole = (reduce(mask, 't o h w -> t o', 'sum') for mask in (own, visible, drawn))
    ratio = area / np.maximum(expected, 1)
    low, high = AREA_RANGE
    seen = area >= MIN_VISIBLE * full
    found = seen & (ratio >= low) & (ratio <= high)
    centre = np.stack([column, row], axis=-1) + _middle(own & _dilated(drawn)) - _middle(visible)
    stray = _interior_count(own & ~_dilated(drawn)) >= MIN_BODY
    extra = _interior_count((classes != BLACK) & ~any_own)
    count = seen.sum(axis=1) + stray.sum(axis=1) + (extra >= MIN_BODY)
    return (
        found,
        (area / full).astype(np.float32),
        (1 - expected / np.maximum(whole, 1)).astype(np.float32),
        np.where(found[..., None], centre, np.nan).astype(np.float32),
        np.where(found, fit.argmax(axis=0), -1).astype(np.int32),
        count.astype(np.int32),
        extra.astype(np.int32),
    )


def _fit(own: np.ndarray, free: np.ndarray, templates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best intersection over union of each template with each object, and its position.

    Args:
      own: bool [T,O,H,W], pixels of each object.
      free: bool [T,H,W], pixels of no object of the clip; those outside the frame are free too.
      templates: bool [S,2R,2R].

    Returns:
      float [S,T,O] in [0, 1], and rows and columns int [S,T,O] of the pixel corner at the middle of the template.
    """
    height, width = own.shape[-2:]
    border = [(_REACH, _REACH), (_REACH, _REACH)]
    own = np.pad(own, [(0, 0), (0, 0), *border]).astype(np.float32)
    free = np.pad(free, [(0, 0), *border], constant_values=True).astype(np.float32)
    area = reduce(own, 't o h w -> t o 1 1', 'sum')
    own_waves, free_waves = np.fft.rfft2(own), np.fft.rfft2(free)[:, None]
    results = []
    for template in templates:
        waves = np.fft.rfft2(template.astype(np.float32), s=own.shape[-2:]).conj()
        overlap, beyond = (
            np.fft.irfft2(image * waves, s=own.shape[-2:])[..., :height, :width] for image in (own_waves, free_waves)
        )
        fits = rearrange(overlap / np.maximum(area + beyond, 1), 't o h w -> t o (h w)')
        results.append((fits.max(axis=-1), *np.divmod(fits.argmax(axis=-1), width)))
    return tuple(np.stack(values) for values in zip(*results))


def _draw(templates: np.ndarray, row: np.ndarray, column: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw templates bool [O,2R,2R] with middles at pixel corners int [T,O] as masks bool [T,O,H,W]."""
    masks = np.zeros((*row.shape, size[0] + 2 * _REACH, size[1] + 2 * _REACH), bool)
    side = templates.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(masks, (side, side), axis=(2, 3), writeable=True)
    frames, slots = np.indices(row.shape)
    windows[frames, slots, row, column] = templates
    return masks[..., _REACH:-_REACH, _REACH:-_REACH]


def _middle(mask: np.ndarray) -> np.ndarray:
    """Return the mean (x, y) of the pixels of bool [...,H,W], float [...,2]; (0, 0) for an empty mask."""
    area = np.maximum(mask.sum(axis=(-2, -1)), 1)
    x = (mask.sum(axis=-2) @ np.arange(mask.shape[-1])) / area
    y = (mask.sum(axis=-1) @ np.arange(mask.shape[-2])) / area
    return np.stack([x, y], axis=-1)


def _neighbourhoods(mask: np.ndarray) -> np.ndarray:
    """Return the 3x3 neighbourhoods of bool [...,H,W]: [...,H,W,3,3], False outside the frame."""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(-2, -1))


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Dilate a mask by one pixel."""
    return _neighbourhoods(mask).any(axis=(-2, -1))


def _interior_count(mask: np.ndarray) -> np.ndarray:
    """Count the pixels of bool [...,H,W] that are surrounded by mask pixels; borders and specks do not count."""
    return _neighbourhoods(mask).all(axis=(-2, -1)).sum(axis=(-2, -1))
