"""Trains the embedded classifier: labelled clips of `bouncing_objects`, loss and accuracies.

Dimension key: B clips, T frames, S time slots, O object slots, H W pixels, U units of a factor, P palette colours.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.ndimage import gaussian_filter

from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.data.transforms import clip_indices
from magi_jax.evaluation.classifier import FACTORS, FRAMES, SLOT_FRAMES, Classifier

INTERVALS = (1, 2)  # frame intervals of clips; classes of the factor `interval`
BLURRED = 0.25  # fraction of the clips
BLUR = {'sharp': (0.0, 0.8), 'blurred': (1.1, 1.8)}  # standard deviation in pixels
NOISE = 6.0  # largest standard deviation, of 255; noise and slight blur that a tokenizer may add without a penalty
VIDEO_FRAMES = 96  # frames of the videos that clips are cut from
UNDECIDED = 0.3  # pixels a frame; slower or turning objects have no direction along that axis
NO_LABEL = -1
SIDE = bouncing.SIDE

Labels = dict[str, np.ndarray]  # factor -> int [S,U], NO_LABEL where undefined


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames and all ground truth of one clip.

    Attributes:
      frames: uint8 [T,H,W,3].
      centres: centre of each object in pixels, [T,O,2].
      labels: class of each object, -1 if absent, int [O].
      colours: index into the palette, or -1, int [O].
      interval: index into INTERVALS.
      sharp: True if the blur is small.
    """

    frames: np.ndarray
    centres: np.ndarray
    labels: np.ndarray
    colours: np.ndarray
    interval: int
    sharp: bool


def draw_clips(kind: str, split: str, videos: Iterable[int], per_video: int, seed: int) -> Iterator[Clip]:
    """Draw clips from the videos with the given numbers, in order."""
    for number in videos:
        video = bouncing.make_video(kind, split, number, VIDEO_FRAMES)
        rng = np.random.default_rng([seed, number])
        for _ in range(per_video):
            chosen = int(rng.integers(len(INTERVALS)))
            start = rng.integers(VIDEO_FRAMES - (FRAMES - 1) * INTERVALS[chosen])
            indices = clip_indices(start, FRAMES, INTERVALS[chosen])
            sharp = rng.random() >= BLURRED
            frames = _degrade(rng, video['frames'][indices], sharp)
            yield Clip(frames, video['centres'][indices], video['labels'], video['colours'], chosen, sharp)


def _degrade(rng: np.random.Generator, video: np.ndarray, sharp: bool) -> np.ndarray:
    """Add Gaussian blur and noise of random strength to uint8 [T,H,W,3]."""
    std = rng.uniform(*BLUR['sharp' if sharp else 'blurred'])
    blurred = gaussian_filter(video.astype(np.float32), (0, std, std, 0))
    noise = rng.uniform(0, NOISE) * rng.standard_normal(video.shape, np.float32)
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)


def make_labels(kind: str, clip: Clip) -> Labels:
    """Return the classes of all factors of a clip."""
    slots = FRAMES // SLOT_FRAMES
    made = {factor: np.full((slots, units), NO_LABEL, np.int32) for factor, (units, _) in FACTORS[kind].items()}
    made['object'][:] = 0
    made['interval'][:] = clip.interval
    made['sharp'][:] = clip.sharp
    present = clip.labels >= 0
    labels, colours = clip.labels[present], clip.colours[present]
    directions = _directions(clip.centres[:, present], INTERVALS[clip.interval])  # [S,O,2]
    if kind == 'shapes':
        made['object'][:, colours] = labels + 1
        made['rightward'][:, colours] = directions[..., 0]
        made['downward'][:, colours] = directions[..., 1]
        return made
    np.add.at(made['object'], (slice(None), labels), 1)
    decided = (directions != NO_LABEL).all(axis=1)  # [S,2]
    counts = np.where(decided, directions.sum(axis=1), NO_LABEL)
    made['rightward'][:, 0], made['downward'][:, 0] = counts.T
    return made


def _directions(centres: np.ndarray, interval: int) -> np.ndarray:
    """Return int [S,O,2]: 1 where a coordinate [T,O,2] grows from the first frame of a slot to that of the next."""
    steps = np.diff(centres, axis=0, append=np.nan * centres[:1]) / interval
    first, second = steps[::SLOT_FRAMES], steps[1::SLOT_FRAMES]
    second = np.where(np.isnan(second), first, second)  # the last slot has one step only
    slow = np.minimum(abs(first), abs(second)) < UNDECIDED
    return np.where(slow | (first * second < 0), NO_LABEL, first > 0)


def augment(rng: np.random.Generator, kind: str, clip: Clip) -> Clip:
    """Augment a clip: reverse time, mirror left to right, permute colour channels, each at random.

    Digits are only reversed in time, because mirroring changes their class.
    """
    backwards, mirrored = rng.random(2) < 0.5
    if backwards:
        clip = dataclasses.replace(clip, frames=clip.frames[::-1], centres=clip.centres[::-1])
    if kind == 'shapes':
        if mirrored:
            centres = np.stack([SIDE - clip.centres[..., 0], clip.centres[..., 1]], axis=-1)
            clip = dataclasses.replace(clip, frames=clip.frames[:, :, ::-1], centres=centres)
        channels, renamed = _channel_permutations()[rng.integers(6)]
        colours = np.where(clip.colours >= 0, renamed[clip.colours], clip.colours)
        clip = dataclasses.replace(clip, frames=clip.frames[..., channels], colours=colours)
    return clip


@functools.cache
def _channel_permutations() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every permutation of the colour channels and the palette index [P] that each colour has after it."""
    palette = np.asarray(list(bouncing.PALETTE.values()))
    orders = [np.asarray(order) for order in itertools.permutations(range(3))]
    return [(order, (palette[:, None, order] == palette[None]).all(axis=-1).argmax(axis=1)) for order in orders]


def make_batch(kind: str, clips: Sequence[Clip]) -> tuple[np.ndarray, Labels]:
    """Stack clips into videos uint8 [B,T,H,W,3] and labels {factor: int32 [B,S,U]}."""
    labels = [make_labels(kind, clip) for clip in clips]
    stacked = {name: np.stack([each[name] for each in labels]) for name in FACTORS[kind]}
    return np.stack([clip.frames for clip in clips]), stacked


def loss(kind: str, params: Any, video: jax.Array, labels: dict[str, jax.Array]) -> jax.Array:
    """Return the cross-entropy: the mean over labelled units of each factor, summed over factors."""
    total = 0.0
    for factor, logits in Classifier(kind).apply({'params': params}, video).items():
        answers = labels[factor]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answers, 0))
        total += (errors * (answers >= 0)).sum() / jnp.maximum((answers >= 0).sum(), 1)
    return total


def train(kind: str, clips: Sequence[Clip], steps: int, batch_size: int, seed: int) -> Iterator[tuple]:
    """Yield (parameters, loss) after every step; the learning rate decays to 0 at the last one."""
    params = Classifier(kind).init(jax.random.key(seed), np.zeros((1, FRAMES, SIDE, SIDE, 3), np.uint8))['params']
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(50, steps // 4), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4))

    @jax.jit
    def step(params: Any, state: Any, video: jax.Array, labels: dict[str, jax.Array]) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(functools.partial(loss, kind))(params, video, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for number in range(steps):
        rng = np.random.default_rng([seed, number])
        chosen = rng.integers(len(clips), size=batch_size)
        params, state, value = step(params, state, *make_batch(kind, [augment(rng, kind, clips[i]) for i in chosen]))
        yield params, value


def accuracies(kind: str, params: Any, clips: Sequence[Clip], batch_size: int) -> dict[str, float]:
    """Return the accuracy of every factor over labelled units of all slots; for objects, over present ones.

    `count` is the fraction of clips in which every unit of `object` is right, absent ones included, by the summed
    probabilities of the slots.
    """
    predict = jax.jit(lambda video: Classifier(kind).apply({'params': params}, video))
    right, asked = dict.fromkeys([*FACTORS[kind], 'count'], 0), dict.fromkeys([*FACTORS[kind], 'count'], 0)
    for start in range(0, len(clips), batch_size):
        video, labels = make_batch(kind, clips[start : start + batch_size])
        for factor, logits in predict(video).items():
            counted = labels[factor] > (0 if factor == 'object' else NO_LABEL)
            right[factor] += int(((np.asarray(logits).argmax(axis=-1) == labels[factor]) & counted).sum())
            asked[factor] += int(counted.sum())
            if factor == 'object':
                whole = np.asarray(jax.nn.softmax(logits).sum(axis=1)).argmax(axis=-1)
                right['count'] += int((whole == labels[factor][:, 0]).all(axis=-1).sum())
                asked['count'] += len(video)
    return {factor: right[factor] / asked[factor] for factor in right}
