"""Checks that generated videos show what their captions name, on `bouncing_objects/captions`.

Captions of the test split put known words together in combinations that training never shows. Objects are found by
colour, so the measures need no network.

Dimension key: B clips, T frames, H W pixels, S shapes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from magi_jax.config import ConfigError
from magi_jax.data.builders.captions import DIRECTIONS
from magi_jax.data.builders.drawing import SHAPES
from magi_jax.evaluation.objects import find_objects

MEASURES = ('colour', 'shape', 'direction')
GOALS = {'colour': 0.9, 'shape': 0.8, 'direction': 0.8}
MIN_TRAVEL = 6.0  # pixels between the first and the last place of an object that moves; the slowest moves 22

Generate = Callable[[list[str], int], np.ndarray]  # (captions [B], seed) -> videos uint8 [B,T,H,W,3]


@dataclasses.dataclass(frozen=True)
class SteeringResult:
    """Fractions of videos that show what is named: {measure: one value for each seed}.

    Attributes:
      own: videos generated from their caption.
      swapped: videos generated from the caption of another combination, and compared with the first caption.
      real: real videos of the captions, once; the detector's errors.
      clips: number of captions.
    """

    own: dict[str, list[float]]
    swapped: dict[str, list[float]]
    real: dict[str, float]
    clips: int

    def to_json(self) -> dict[str, Any]:
        """Return all numbers for metrics.json."""
        return dataclasses.asdict(self)


def shown(video: np.ndarray, labels: np.ndarray, colours: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
    """Return which videos show the named colour, shape and direction: bool [B] each.

    The colour is shown if an object of it is found in half of the frames, whatever its shape. The shape is shown if it
    fits this object best in most of these frames. The direction is shown if it is nearest to the way from the first to
    the last place of this object.

    Args:
      video: uint8 [B,T,H,W,3].
      labels: int [B], named shapes, indices into SHAPES.
      colours: int [B], named colours, indices into PALETTE.
      directions: int [B], named directions, indices into DIRECTIONS.
    """
    # One slot for each shape: an object is found in the slot of the shape that fits it best.
    slots = np.broadcast_to(np.arange(len(SHAPES)), (len(video), len(SHAPES)))
    objects = find_objects(video, slots, np.broadcast_to(colours[:, None], slots.shape))
    found = objects.found & (objects.shape == slots[:, None])  # [B,T,S]
    frames = found.any(axis=-1)
    seen = frames.mean(axis=1) >= 0.5
    named = np.take_along_axis(found, labels[:, None, None], axis=-1)[..., 0]
    fits = named.sum(axis=1) > frames.sum(axis=1) / 2
    moved = np.array([_direction(*clip) for clip in zip(found, objects.centre)])
    return {'colour': seen, 'shape': seen & fits, 'direction': seen & (moved == directions)}


def score_steering(batch: dict[str, np.ndarray], generate: Generate, seeds: int, first_seed: int) -> SteeringResult:
    """Generate videos from captions, and from swapped captions, and compare both with the captions.

    Args:
      batch: clips of `bouncing_objects/captions`: video, caption, labels, colours and direction.
      generate: function that samples videos.
      seeds: number of seeds.
      first_seed: the first of them.
    """
    named = batch['labels'][:, 0], batch['colours'][:, 0], batch['direction']
    captions = batch['caption'].tolist()
    swapped = [captions[row] for row in other_rows(*named)]
    results: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in MEASURES} for kind in ('own', 'swapped')}
    for seed in range(first_seed, first_seed + seeds):
        for kind, texts in (('own', captions), ('swapped', swapped)):
            for name, values in shown(generate(texts, seed), *named).items():
                results[kind][name].append(float(values.mean()))
    real = {name: float(values.mean()) for name, values in shown(batch['video'], *named).items()}
    return SteeringResult(results['own'], results['swapped'], real, len(captions))


def table_rows(result: SteeringResult) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: each measure with its own, swapped and real fraction of videos and its goal."""

    def percent(values: list[float]) -> str:
        spread = f' ± {100 * np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
        return f'{100 * np.mean(values):.1f}{spread} %'

    headings = ['shown in the video', 'own caption', 'swapped caption', 'real videos', 'goal']
    rows = [
        [
            name,
            percent(result.own[name]),
            percent(result.swapped[name]),
            percent([result.real[name]]),
            f'{100 * goal:.0f} %',
        ]
        for name, goal in GOALS.items()
    ]
    return headings, rows


def other_rows(labels: np.ndarray, colours: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return for each clip the number of the next clip that differs in colour, shape and direction, int [B].

    Raises:
      ConfigError: a clip has no such other clip.
    """
    count, rows = len(labels), []
    for row in range(count):
        others = (np.arange(1, count) + row) % count
        differ = (labels[others] != labels[row]) & (colours[others] != colours[row])
        differ &= directions[others] != directions[row]
        if not differ.any():
            raise ConfigError(f'clip {row} has no clip with another colour, shape and direction: evaluate more clips')
        rows.append(others[differ.argmax()])
    return np.array(rows)


def _direction(found: np.ndarray, centre: np.ndarray) -> int:
    """Return the direction from the first to the last place of an object, an index into DIRECTIONS, or -1 at rest.

    Args:
      found: bool [T,S], at most one shape in each frame.
      centre: float [T,S,2], (x, y); y grows downwards.
    """
    places = centre[found]
    if len(places) < 2 or np.hypot(*(places[-1] - places[0])) < MIN_TRAVEL:
        return -1
    x, y = places[-1] - places[0]
    return round(np.arctan2(y, x) / (2 * np.pi / len(DIRECTIONS))) % len(DIRECTIONS)
