"""Captioned videos of `bouncing_objects`: one shape moves straight, and in half of the videos another one rests.

The caption names colour, shape and direction: 'a red disc moves up and left past a blue square'. Twelve combinations of
the three are only in 'test'. Each of their colours, shapes and directions, and each pair of them, also occurs in
training. So 'test' asks if a model puts known words together in a new way.

Objects touch neither the walls nor each other.

Dimension key: T = 16 frames.
"""

import itertools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.data.builders.drawing import (
    GAP,
    PALETTE,
    RADII,
    SHAPES,
    SIDE,
    ObjectSpec,
    draw_example,
    make_shape,
    on_grid,
)

KIND = 'captions'
FRAMES = 16
COUNTS = {'train': 4096, 'validation': 64, 'test': 192}
SPLITS = tuple(COUNTS)
SPEEDS = (1.5, 2.5)  # pixels per frame
RESTING = 0.5  # fraction of the videos with a resting shape
STRIDE = 37  # prime, so consecutive videos go through all combinations, in an order that mixes colours and shapes

_DIAGONAL = np.sqrt(0.5)
_STEPS = {  # direction -> unit vector (x, y); y grows downwards
    'right': (1.0, 0.0),
    'down and right': (_DIAGONAL, _DIAGONAL),
    'down': (0.0, 1.0),
    'down and left': (-_DIAGONAL, _DIAGONAL),
    'left': (-1.0, 0.0),
    'up and left': (-_DIAGONAL, -_DIAGONAL),
    'up': (0.0, -1.0),
    'up and right': (_DIAGONAL, -_DIAGONAL),
}
DIRECTIONS = tuple(_STEPS)
Combination = tuple[str, str, str]  # colour, shape and direction of the moving shape
# One direction for each colour and shape, so that no pair of words is held out as a whole.
HELD_OUT: tuple[Combination, ...] = tuple(
    (colour, shape, DIRECTIONS[(2 * i + 3 * j) % len(DIRECTIONS)])
    for (i, colour), (j, shape) in itertools.product(enumerate(PALETTE), enumerate(SHAPES))
)
SEEN: tuple[Combination, ...] = tuple(
    combination for combination in itertools.product(PALETTE, SHAPES, DIRECTIONS) if combination not in HELD_OUT
)


def caption(colour: str, shape: str, direction: str, other: tuple[str, str] | None = None) -> str:
    """Return the caption of a video.

    Args:
      colour: colour of the moving shape, a key of PALETTE.
      shape: one of SHAPES.
      direction: one of DIRECTIONS.
      other: colour and shape of the resting shape; None = there is none.
    """
    past = f' past a {other[0]} {other[1]}' if other else ''
    return f'a {colour} {shape} moves {direction}{past}'


def make_video(split: str, index: int) -> dict[str, Any]:
    """Make one example of the dataset.

    Args:
      split: 'train', 'validation' or 'test'.
      index: number of the video in its split, any non-negative integer.

    Returns:
      The entries of `drawing.draw_example`, with the moving shape in slot 0 and the resting one in slot 1. Besides,
      caption, and direction, the index into DIRECTIONS.
    """
    rng = np.random.default_rng([SPLITS.index(split), index])
    combinations = HELD_OUT if split == 'test' else SEEN
    colour, shape, direction = combinations[index * STRIDE % len(combinations)]
    moving = make_shape(SHAPES.index(shape), list(PALETTE).index(colour))
    resting, other = None, None
    if rng.uniform() < RESTING:
        other = str(rng.choice([name for name in PALETTE if name != colour])), str(rng.choice(SHAPES))
        resting = make_shape(SHAPES.index(other[1]), list(PALETTE).index(other[0]))
    paths = _paths(rng, direction, moving, resting)
    objects = [moving] if resting is None else [moving, resting]
    labels = {'caption': caption(colour, shape, direction, other), 'direction': DIRECTIONS.index(direction)}
    return draw_example(f'{KIND}/{split}/{index:05d}', objects, paths) | labels


def make_features() -> dict[str, Any]:
    """Return the TFDS features that the captioned videos have besides those of all kinds."""
    return {'caption': tfds.features.Text(), 'direction': np.int32}


def _paths(rng: np.random.Generator, direction: str, moving: ObjectSpec, resting: ObjectSpec | None) -> np.ndarray:
    """Return centres float64 [T, 1 or 2, 2]. Places are drawn until the shapes are far enough from each other."""
    step = on_grid(rng.uniform(*SPEEDS) * np.asarray(_STEPS[direction]))
    travel = step * np.arange(FRAMES)[:, None]
    while True:
        path = on_grid(_draw_start(rng, moving, travel)) + travel
        if resting is None:
            return path[:, None]
        place = on_grid(_draw_start(rng, resting, np.zeros((1, 2))))
        least = RADII[SHAPES[moving.label]] + RADII[SHAPES[resting.label]] + GAP
        if np.square(path - place).sum(axis=1).min() >= least * least:
            return np.stack([path, np.broadcast_to(place, path.shape)], axis=1)


def _draw_start(rng: np.random.Generator, item: ObjectSpec, travel: np.ndarray) -> np.ndarray:
    """Draw a first centre from which no centre of `travel` [T,2] brings the shape to a wall."""
    left, right, up, down = item.extents
    low = np.array([left, up]) + 1.0 - travel.min(axis=0)  # one pixel from the wall, for the antialiased border
    high = SIDE - 1.0 - np.array([right, down]) - travel.max(axis=0)
    return rng.uniform(low, high)
