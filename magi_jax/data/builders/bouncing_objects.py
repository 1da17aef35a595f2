"""TFDS builder `bouncing_objects`: shapes that bounce off walls and each other, handwritten digits, captioned motion.

Every video is a function of (kind, split, video index). Centres lie on a grid of 1/1024 pixel and every operation is
correctly rounded, so the bytes are the same on every machine.

Shapes never overlap: a shape reflects off another shape as off a wall and keeps its speed. Nothing is hidden, so any
two frames show all objects and their motion. Digits pass through each other, which makes that set harder. The
captioned set is made in captions.py, and drawing.py draws all objects.

Coordinates are (x, y) in pixels from the top left corner of the frame. The walls are at 0 and 64.

Dimension key: T frames, O = 3 object slots (absent objects hold -1 or NaN), W side of the window that an object is
drawn in.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from magi_jax.data.builders import captions
from magi_jax.data.builders.drawing import (
    GAP,
    MAX_OBJECTS,
    PALETTE,
    RADII,
    SHAPES,
    SIDE,
    ObjectSpec,
    draw_example,
    make_shape,
    on_grid,
)

FRAMES = 400
SPEEDS = (1.5, 2.5)  # pixels per frame
SUBSTEPS = 8  # substeps of a frame; contacts are checked after each
COUNTS = {'train': 512, 'validation': 64, 'test': 64}
SPLITS = tuple(COUNTS)
KINDS = ('shapes', 'digits')

DIGIT_SIDE = 24
DIGITS_PER_VIDEO = 2
# Range [start, stop) of the sklearn digits of each split: splits share no handwriting.
DIGIT_RANGES = {'train': (0, 1400), 'validation': (1400, 1600), 'test': (1600, 1797)}


def make_video(kind: str, split: str, index: int, frames: int = FRAMES) -> dict[str, Any]:
    """Make one example of the dataset, or its first frames.

    Args:
      kind: 'shapes' or 'digits'.
      split: 'train', 'validation' or 'test'.
      index: number of the video in its split, any non-negative integer.
      frames: T. Fewer frames than FRAMES save time.

    Returns:
      frames uint8 [T,64,64,3], video_id, count, labels and colours int32 [O], sizes float32 [O,2] (width, height),
      centres float32 [T,O,2]. Slots are in drawing order: a later object hides an earlier one.
    """
    rng = np.random.default_rng([KINDS.index(kind), SPLITS.index(split), index])
    objects = _draw_shapes(rng) if kind == 'shapes' else _draw_digits(rng, split)
    paths = _paths(rng, objects, frames, collide=kind == 'shapes')
    return draw_example(f'{kind}/{split}/{index:05d}', objects, paths)


def _draw_shapes(rng: np.random.Generator) -> list[ObjectSpec]:
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    colours = rng.permutation(len(PALETTE))[:count]
    labels = rng.integers(0, len(SHAPES), count)
    return [make_shape(int(label), int(colour)) for label, colour in zip(labels, colours, strict=True)]


def _draw_digits(rng: np.random.Generator, split: str) -> list[ObjectSpec]:
    images, classes = _digits()
    chosen = rng.integers(*DIGIT_RANGES[split], DIGITS_PER_VIDEO)
    extents = (DIGIT_SIDE / 2,) * 4
    return [ObjectSpec(int(classes[i]), -1, extents, functools.partial(_digit, images[i])) for i in chosen]


def _paths(rng: np.random.Generator, objects: list[ObjectSpec], frames: int, collide: bool) -> np.ndarray:
    """Return centres float64 [T,O,2]. Speeds are constant; walls and, if `collide`, other objects reflect an object."""
    extents = np.array([item.extents for item in objects])
    low, high = extents[:, [0, 2]], SIDE - extents[:, [1, 3]]
    radii = [RADII[SHAPES[item.label]] + GAP / 2 if collide else 0.0 for item in objects]
    min_distances = {pair: radii[pair[0]] + radii[pair[1]] for pair in itertools.combinations(range(len(objects)), 2)}
    centres = on_grid(rng.uniform(low, high))
    while _colliding_pairs(centres.tolist(), min_distances):
        centres = on_grid(rng.uniform(low, high))
    speed, angle = rng.uniform(*SPEEDS, len(objects)), rng.uniform(0.0, 2 * np.pi, len(objects))
    steps = on_grid(speed * np.array([np.cos(angle), np.sin(angle)])).T / SUBSTEPS
    centres, steps, low, high = centres.tolist(), steps.tolist(), low.tolist(), high.tolist()
    paths = np.empty((frames, len(objects), 2))
    for frame in paths:
        frame[:] = centres
        for _ in range(SUBSTEPS):
            for centre, step, least, most in zip(centres, steps, low, high):
                _advance(centre, step, least, most)
            for i, j in _colliding_pairs(centres, min_distances):
                _reflect_off(centres[i], steps[i], centres[j])
                _reflect_off(centres[j], steps[j], centres[i])
    return on_grid(paths)


def _colliding_pairs(centres: list[list[float]], min_distances: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """Return the pairs of objects that are closer than the sum of their radii."""
    pairs = min_distances.items()
    return [(i, j) for (i, j), least in pairs if _square_distance(centres[i], centres[j]) < least * least]


def _square_distance(a: list[float], b: list[float]) -> float:
    dx, dy = a[0] - b[0], a[1] - b[1]
    return dx * dx + dy * dy


def _advance(centre: list[float], step: list[float], least: list[float], most: list[float]) -> None:
    """Advance one substep in place. A centre that would leave the box is reflected."""
    for axis in (0, 1):
        position = centre[axis] + step[axis]
        if position < least[axis]:
            position, step[axis] = 2 * least[axis] - position, abs(step[axis])
        if position > most[axis]:
            position, step[axis] = 2 * most[axis] - position, -abs(step[axis])
        centre[axis] = position


def _reflect_off(centre: list[float], step: list[float], other: list[float]) -> None:
    """Mirror `step` in place, as off a wall between the two centres, if it points toward the other object."""
    normal = [b - a for a, b in zip(centre, other, strict=True)]
    toward = sum(s * n for s, n in zip(step, normal, strict=True))
    if toward > 0:
        length = sum(n * n for n in normal)
        for axis in (0, 1):
            step[axis] -= 2 * toward * normal[axis] / length


def _digit(image: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Interpolate `image` [24,24] bilinearly at subpixel offsets. This is exact in float64: offsets lie on the grid."""
    texels = np.arange(DIGIT_SIDE) + 0.5 - DIGIT_SIDE / 2
    rows, columns = (np.maximum(0.0, 1.0 - np.abs(d[:, :, None] - texels)) for d in (dy, dx))
    return rows @ image @ columns.transpose(0, 2, 1) / 255.0


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all sklearn digits, enlarged smoothly to float64 [1797,24,24] in [0, 255], and their classes [1797]."""
    from PIL import Image
    from sklearn.datasets import load_digits

    dataset = load_digits()
    small = np.rint(dataset.images * (255 / 16)).astype(np.uint8)
    size = (DIGIT_SIDE, DIGIT_SIDE)
    large = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large).astype(np.float64), dataset.target


@dataclasses.dataclass(kw_only=True)
class BouncingConfig(tfds.core.BuilderConfig):
    """Config of one kind of video: `kind`, number of frames, and `counts` of videos per split (small in tests)."""

    kind: str = 'shapes'
    frames: int = FRAMES
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict(COUNTS))


class Frame(tfds.features.Tensor):
    """An image uint8 [64,64,3] that is passed as zlib bytes.

    The caller chooses the compression level. The fastest level takes a third of the time of TFDS and a fifth more
    bytes.
    """

    def __init__(self) -> None:
        super().__init__(shape=(SIDE, SIDE, 3), dtype=np.uint8, encoding='zlib')

    def encode_example(self, example_data: bytes) -> bytes:
        return example_data


class BouncingObjects(tfds.core.ShardBasedBuilder):
    """Builds the dataset from `make_video`. Each frame is compressed separately, so reading a clip is fast."""

    VERSION = tfds.core.Version('3.0.0')
    RELEASE_NOTES = {
        '2.0.0': 'Shapes reflect off each other, in sizes and colours that differ more.',
        '3.0.0': 'Four colours, equally far from each other.',
    }
    BUILDER_CONFIGS = [
        BouncingConfig(name='shapes', kind='shapes', description='1-3 plain shapes of distinct colours'),
        BouncingConfig(name='digits', kind='digits', description='two handwritten digits'),
        BouncingConfig(
            name=captions.KIND,
            kind=captions.KIND,
            frames=captions.FRAMES,
            counts=dict(captions.COUNTS),
            description='a shape that moves straight, often past a resting one, with a caption',
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        frames, captioned = self.builder_config.frames, self.builder_config.kind == captions.KIND
        centres = tfds.features.Tensor(shape=(frames, MAX_OBJECTS, 2), dtype=np.float32, encoding='bytes')
        features = {
            'frames': tfds.features.Sequence(Frame(), length=frames),
            'video_id': tfds.features.Text(),
            'count': np.int32,
            'labels': tfds.features.Tensor(shape=(MAX_OBJECTS,), dtype=np.int32),
            'colours': tfds.features.Tensor(shape=(MAX_OBJECTS,), dtype=np.int32),
            'sizes': tfds.features.Tensor(shape=(MAX_OBJECTS, 2), dtype=np.float32),
            'centres': centres,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description='Objects that bounce off the walls of a 64x64 frame, with labels and true trajectories.',
            features=tfds.features.FeaturesDict(features | (captions.make_features() if captioned else {})),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Callable]]:
        counts = self.builder_config.counts
        return {split: [functools.partial(self._examples, split, counts[split])] for split in counts}

    def _examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        # Two threads make videos while TFDS writes; compression releases the GIL.
        with futures.ThreadPoolExecutor(2) as pool:
            for example in pool.map(functools.partial(self._example, split), range(count)):
                yield example['video_id'], example

    def _example(self, split: str, index: int) -> dict[str, Any]:
        kind = self.builder_config.kind
        captioned = kind == captions.KIND
        video = captions.make_video(split, index) if captioned else make_video(kind, split, index)
        return video | {'frames': [zlib.compress(frame.tobytes(), level=1) for frame in video['frames']]}


def prepare(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Return the dataset `name`. Build it first if it is missing; TFDS renames a finished build into place.

    Args:
      name: 'bouncing_objects/shapes', 'bouncing_objects/digits' or 'bouncing_objects/captions'.
      data_dir: TFDS folder.

    Raises:
      ValueError: there is no dataset `name`.
    """
    dataset, _, config = name.partition('/')
    kinds = [config.name for config in BouncingObjects.BUILDER_CONFIGS]
    if dataset != BouncingObjects.name or config not in kinds:
        known = ', '.join(f'{BouncingObjects.name}/{kind}' for kind in kinds)
        raise ValueError(f'there is no dataset {name!r}: choose one of {known}')
    builder = BouncingObjects(config=config, data_dir=data_dir, file_format='array_record')
    try:
        builder.download_and_prepare(file_format='array_record')
    except OSError:
        builder = BouncingObjects(config=config, data_dir=data_dir, file_format='array_record')
        if not builder.is_prepared():  # otherwise another process has built the same bytes
            raise
    return builder
