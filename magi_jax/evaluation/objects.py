"""Finds the coloured shapes of `bouncing_objects` in real or generated frames, also when they hide each other.

Within a clip no two objects share a colour, so an object is found by its colour. Its place and shape are those of the
template that explains its pixels best; template pixels covered by another object of the clip count neither way.

B clips, T frames, O object slots (colour -1 where there is none), H rows, W columns, S shapes, P palette colours.
"""

import dataclasses

import numpy as np
from einops import rearrange, reduce

from magi_jax.data.builders import bouncing_objects as bouncing

BLACK, FOREIGN = -1, -2  # classes of pixels that have no palette colour
MIN_OPACITY = 0.5
MAX_RESIDUAL = 60.0  # RGB distance at which a pixel is no longer a darker version of a palette colour
AREA_RANGE = (0.5, 1.7)  # visible area over expected visible area
MIN_VISIBLE = 1 / 8  # of the full area: less than that cannot be told from a border
MIN_BODY = 25  # pixels of a body that should not be there, borders not counted

_REACH = 13  # pixels from an object's centre that hold the largest template
_PALETTE = np.asarray(list(bouncing.PALETTE.values()), np.float32)


@dataclasses.dataclass(frozen=True)
class Objects:
    """What was found. Entries of absent slots and of objects not found are NaN, -1 or False."""

    present: np.ndarray  # bool [B,O], whether the clip has this object at all
    found: np.ndarray  # bool [B,T,O], the visible area is in AREA_RANGE of what the true shape would show
    area: np.ndarray  # float32 [B,T,O], visible pixels over the true shape's full area
    hidden: np.ndarray  # float32 [B,T,O], part of the fitted true shape that other objects cover, in [0, 1]
    centre: np.ndarray  # float32 [B,T,O,2], (x, y) in pixels as in bouncing_objects
    shape: np.ndarray  # int32 [B,T,O], index into bouncing_objects.SHAPES
    count: np.ndarray  # int32 [B,T], objects in sight plus bodies that should not be there
    extra: np.ndarray  # int32 [B,T], pixels inside bodies of colours that the clip does not have


def find_objects(video: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> Objects:
    """Finds every object of every frame.

    Args:
      video: uint8 [B,T,H,W,3], real or generated.
      labels: int [B,O], true shapes, indices into bouncing_objects.SHAPES; -1 = no object.
      colours: int [B,O], indices into bouncing_objects.PALETTE; -1 = no object.

    Raises:
      ValueError: a clip without coloured objects (the digits are white: there is no telling them apart).
    """
    if not (colours >= 0).any(axis=1).all():
        raise ValueError('objects are found by colour; this data has none: use bouncing_objects/shapes')
    clips = [_find_in_clip(*clip) for clip in zip(video, labels, colours)]
    return Objects(colours >= 0, *(np.stack(values) for values in zip(*clips)))


def classify_pixels(frames: np.ndarray) -> np.ndarray:
    """Palette index of each pixel, or BLACK or FOREIGN: uint8 [...,H,W,3] -> int8 [...,H,W].

    A pixel is a palette colour at some opacity over black. The nearest colour alone would lose an object's dark border.
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
    """Pixels of each shape whose centre is the middle, a corner of pixels: bool [S,2R,2R]."""
    offset = np.arange(-_REACH, _REACH) + 0.5
    dy, dx = offset[:, None], offset[None, :]
    disc = np.hypot(dx, dy) <= bouncing.DISC_RADIUS
    square = np.maximum(abs(dx), abs(dy)) <= bouncing.SQUARE_SIDE / 2
    triangle = np.maximum(dy, abs(dx) * np.sqrt(0.75) - dy / 2) <= bouncing.TRIANGLE_INRADIUS
    masks = {'disc': disc, 'square': square, 'triangle': triangle}
    return np.stack([masks[name] for name in bouncing.SHAPES])


def _find_in_clip(video: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of `Objects` after `present`, without B."""
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
    centre = np.stack([column, row], axis=-1) + _middle(own & _grown(drawn)) - _middle(visible)
    stray = _inside(own & ~_grown(drawn)) >= MIN_BODY
    extra = _inside((classes != BLACK) & ~any_own)
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
    """Best intersection over union of each template with each object, and where.

    Args:
      own: bool [T,O,H,W], pixels of each object.
      free: bool [T,H,W], pixels of no object of the clip; those outside the frame are free too.
      templates: bool [S,2R,2R].

    Returns:
      float [S,T,O] in [0, 1], rows and columns int [S,T,O], the pixel corner at the template's middle.
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
    """Templates bool [O,2R,2R] with their middles at pixel corners int [T,O] -> masks bool [T,O,H,W]."""
    masks = np.zeros((*row.shape, size[0] + 2 * _REACH, size[1] + 2 * _REACH), bool)
    side = templates.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(masks, (side, side), axis=(2, 3), writeable=True)
    frames, slots = np.indices(row.shape)
    windows[frames, slots, row, column] = templates
    return masks[..., _REACH:-_REACH, _REACH:-_REACH]


def _middle(mask: np.ndarray) -> np.ndarray:
    """Mean (x, y) of the pixels of bool [...,H,W] -> float [...,2]; (0, 0) of an empty mask."""
    area = np.maximum(mask.sum(axis=(-2, -1)), 1)
    x = (mask.sum(axis=-2) @ np.arange(mask.shape[-1])) / area
    y = (mask.sum(axis=-1) @ np.arange(mask.shape[-2])) / area
    return np.stack([x, y], axis=-1)


def _neighbourhoods(mask: np.ndarray) -> np.ndarray:
    """bool [...,H,W] -> [...,H,W,3,3], nothing beyond the frame."""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(-2, -1))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and one pixel around it."""
    return _neighbourhoods(mask).any(axis=(-2, -1))


def _inside(mask: np.ndarray) -> np.ndarray:
    """How many pixels of bool [...,H,W] have only mask pixels around them: borders and specks do not count."""
    return _neighbourhoods(mask).all(axis=(-2, -1)).sum(axis=(-2, -1))
