"""Colours and shapes of the objects of `bouncing_objects`, and their drawing with antialiased borders.

Coordinates are (x, y) in pixels from the top left corner of the frame. Pixel j covers [j, j + 1); the walls are at 0
and 64.

Dimension key: T frames, O = 3 object slots (absent objects hold -1 or NaN), W side of the window that an object is
drawn in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 64
MAX_OBJECTS = 3

# All colours are equally far apart, so that a small drift of a model does not turn one colour into another.
PALETTE = {
    'red': (255, 40, 40),
    'green': (40, 255, 40),
    'blue': (40, 40, 255),
    'white': (255, 255, 255),
}
SHAPES = ('disc', 'square', 'triangle')
DISC_RADIUS = 6.5
SQUARE_SIDE = 16.0
TRIANGLE_SIDE = 20.0  # equilateral
TRIANGLE_INRADIUS = TRIANGLE_SIDE / np.sqrt(12.0)
RADII = {'disc': DISC_RADIUS, 'square': SQUARE_SIDE / 2**0.5, 'triangle': 2 * TRIANGLE_INRADIUS}  # of circles
GAP = 3.0  # shapes reflect at this distance of their circles, in pixels

_WINDOW = 26  # fits the largest object and its antialiased border for any subpixel centre
_GRID = 1024.0


@dataclasses.dataclass(frozen=True)
class ObjectSpec:
    """Label, colour and shape of one object."""

    label: int  # index into SHAPES, or class of the digit.
    colour: int  # Index into PALETTE; -1 for digits, which are white.
    extents: tuple[float, float, float, float]  # Left, right, up and down from the centre, in pixels.
    coverage: Callable[[np.ndarray, np.ndarray], np.ndarray]  # Pixel offsets dx [T,W], dy [T,W] -> [T,W,W] in [0, 1].

    @property
    def rgb(self) -> np.ndarray:
        """Colour, uint16 [3] in [0, 255]."""
        return np.asarray(list(PALETTE.values())[self.colour] if self.colour >= 0 else (255, 255, 255), np.uint16)


def make_shape(label: int, colour: int) -> ObjectSpec:
    """Return a shape. `label` is an index into SHAPES, and `colour` an index into PALETTE."""
    extents = {
        'disc': (DISC_RADIUS,) * 4,
        'square': (SQUARE_SIDE / 2,) * 4,
        'triangle': (TRIANGLE_SIDE / 2, TRIANGLE_SIDE / 2, 2 * TRIANGLE_INRADIUS, TRIANGLE_INRADIUS),
    }
    coverage = {'disc': _disc, 'square': _square, 'triangle': _triangle}
    return ObjectSpec(label, colour, extents[SHAPES[label]], coverage[SHAPES[label]])


def draw_example(video_id: str, objects: list[ObjectSpec], paths: np.ndarray) -> dict[str, Any]:
    """Draw a video and return it with its labels. `paths` float64 [T,objects,2] are the centres.

    Returns:
      frames uint8 [T,64,64,3], video_id, count, labels and colours int32 [O], sizes float32 [O,2] (width, height),
      centres float32 [T,O,2]. Slots are in drawing order: a later object hides an earlier one.
    """
    frames = np.zeros((len(paths), SIDE, SIDE, 3), np.uint8)
    labels, colours = np.full((2, MAX_OBJECTS), -1, np.int32)
    sizes = np.full((MAX_OBJECTS, 2), np.nan, np.float32)
    centres = np.full((len(paths), MAX_OBJECTS, 2), np.nan, np.float32)
    for slot, item in enumerate(objects):
        path = paths[:, slot]
        paint(frames, path, item)
        left, right, up, down = item.extents
        labels[slot], colours[slot] = item.label, item.colour
        sizes[slot], centres[:, slot] = (left + right, up + down), path
    return {
        'frames': frames,
        'video_id': video_id,
        'count': len(objects),
        'labels': labels,
        'colours': colours,
        'sizes': sizes,
        'centres': centres,
    }


def on_grid(values: np.ndarray) -> np.ndarray:
    """Round coordinates to the grid of 1/1024 pixel."""
    return np.rint(values * _GRID) / _GRID


def paint(frames: np.ndarray, path: np.ndarray, item: ObjectSpec) -> None:
    """Draw an object over `frames` uint8 [T,64,64,3] in place, in a window around its centres [T,2]."""
    corner = np.clip(np.floor(path).astype(int) - _WINDOW // 2, 0, SIDE - _WINDOW)
    offsets = corner[:, :, None] + np.arange(_WINDOW) + 0.5 - path[:, :, None]
    alpha = np.rint(255 * item.coverage(offsets[:, 0], offsets[:, 1])).astype(np.uint16)[:, None]
    windows = np.lib.stride_tricks.sliding_window_view(frames, (_WINDOW, _WINDOW), axis=(1, 2), writeable=True)
    window_index = (np.arange(len(frames)), corner[:, 1], corner[:, 0])
    # uint16 holds 255 * 255 + 127, so integer blending is exact. It is several times faster than floats.
    windows[window_index] = (windows[window_index] * (255 - alpha) + item.rgb[:, None, None] * alpha + 127) // 255


def _disc(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    squares = np.square(dy, dtype=np.float32)[:, :, None] + np.square(dx, dtype=np.float32)[:, None, :]
    return np.clip(DISC_RADIUS + 0.5 - np.sqrt(squares), 0.0, 1.0)


def _square(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    half = SQUARE_SIDE / 2 + 0.5
    return np.clip(half - np.abs(dy), 0.0, 1.0)[:, :, None] * np.clip(half - np.abs(dx), 0.0, 1.0)[:, None, :]


def _triangle(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    dx, dy = dx.astype(np.float32)[:, None, :], dy.astype(np.float32)[:, :, None]
    outside = np.maximum(dy, np.abs(dx) * np.float32(np.sqrt(0.75)) - dy * np.float32(0.5))
    return np.clip(np.float32(TRIANGLE_INRADIUS + 0.5) - outside, 0.0, 1.0)
