"""Two protocols for `bouncing_objects`: frames predicted against the truth, long videos that keep their objects.

B clips, C context frames, L generated frames, T = C + L, O object slots, H rows, W columns. Every curve is a list of
plain floats over the generated frames, None where nothing could be measured, so results go straight into JSON.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from magi_jax.evaluation import objects, pixels

Curve = list[float | None]

MARGIN = 3.0  # dB that the mean PSNR must be above the better baseline
KEPT = 0.9  # part of the real clips' value that a long video must keep up
LAST = 8  # frames at the end over which that is averaged
MOVING = 2.0  # pixels that a moving object gets about in MOTION_FRAMES steps; the slowest real one: over 4
MOTION_FRAMES = 8
REVERSAL = 2.0  # pixels before and after a bounce, along one axis


@dataclasses.dataclass(frozen=True)
class Result:
    """One protocol's numbers. `curves` are per generated frame, `numbers` over all of them."""

    protocol: str  # the numbers mean nothing without it
    clips: int
    context: int
    generated: int
    numbers: dict[str, float | None]
    curves: dict[str, Curve]
    passes: dict[str, bool]  # rule in words -> kept?

    def to_json(self) -> dict[str, Any]:
        """All fields as a dict of what JSON knows."""
        return dataclasses.asdict(self)


def score_prediction(generated: np.ndarray, real: np.ndarray, labels: Mapping[str, np.ndarray] | None = None) -> Result:
    """The continuation of C real frames against the real continuation.

    Args:
      generated: uint8 [B,L,H,W,3], without the context.
      real: uint8 [B,C+L,H,W,3].
      labels: of `bouncing_objects/shapes` (labels and colours [B,O], centres [B,C+L,O,2]): adds the objects' errors.

    Returns:
      curves psnr_model, psnr_<baseline>; with labels also, over the objects that are more than half visible in the
      real frame: centre_error_model (pixels, of the found ones), centre_error_real (how well real frames are measured),
      centre_error_repeat_last_context, found_model. numbers: the means of the curves and the margins in dB.

    Raises:
      ValueError: the clips do not match, or as `objects.find_objects`.
    """
    context = real.shape[1] - generated.shape[1]
    if context < 1 or generated.shape != real[:, context:].shape:
        raise ValueError(f'generated {list(generated.shape)} is not the continuation of real {list(real.shape)}')
    truth, length = real[:, context:], generated.shape[1]
    psnrs = {'model': pixels.psnr(generated, truth).mean(axis=0)}
    for name, baseline in pixels.BASELINES.items():
        psnrs[name] = pixels.psnr(baseline(real[:, :context], length), truth).mean(axis=0)
    curves = {f'psnr_{name}': values for name, values in psnrs.items()}
    better = max((name for name in pixels.BASELINES), key=lambda name: psnrs[name].mean())
    margin = psnrs['model'].mean() - psnrs[better].mean()
    last = psnrs['model'][-1] - max(psnrs[name][-1] for name in pixels.BASELINES)
    if labels is not None:
        curves |= _centre_errors(generated, real, labels)
    numbers = {name: _mean(values) for name, values in curves.items()}
    return Result(
        f'{context}-frame prediction: {length} generated frames after {context} real ones, one sample a clip; PSNR of '
        'uint8 RGB frames in dB, averaged over clips',
        len(real),
        context,
        length,
        numbers | {'margin_mean': float(margin), 'margin_last_frame': float(last)},
        {name: _plain(values) for name, values in curves.items()},
        {
            f'mean PSNR at least {MARGIN:g} dB above the better baseline': bool(margin >= MARGIN),
            f'PSNR above both baselines at generated frame {length}': bool(last > 0),
        },
    )


def score_rollout(generated: np.ndarray, real: np.ndarray, labels: Mapping[str, np.ndarray], context: int) -> Result:
    """Whether a long generated video keeps its objects; real clips of the same length are measured alike beside it.

    Objects that hide each other make even real curves stay below 1. Positions are not compared: a small error of the
    speed puts an object elsewhere 64 frames later without being wrong to look at.

    Args:
      generated: uint8 [B,T,H,W,3], its first C frames are the real context.
      real: uint8 [B,T,H,W,3].
      labels: of `bouncing_objects/shapes`: labels and colours [B,O].
      context: C >= 1.

    Returns:
      curves <what>_model and <what>_real, as parts of all objects or clips: colour (found by their colour, with sound
      area), shape (found, and of the right shape), count (clips with the right number of objects and none extra),
      moving (objects that got about in the last frames), speed (pixels a frame). numbers: their means, their
      means over the last frames (<what>_model_end), bounces of an object in 100 frames.

    Raises:
      ValueError: the clips do not match, or as `objects.find_objects`.
    """
    if generated.shape != real.shape or not 1 <= context < real.shape[1]:
        raise ValueError(f'cannot compare {list(generated.shape)} with {list(real.shape)} after {context} frames')
    curves, numbers, passes = {}, {}, {}
    for who, video in {'model': generated, 'real': real}.items():
        seen = objects.find_objects(video, labels['labels'], labels['colours'])
        measured = {name: values[context:] for name, values in _survival(seen, labels['labels']).items()}
        curves |= {f'{name}_{who}': values for name, values in measured.items()}
        numbers[f'bounces_{who}'] = _bounces(seen)
    numbers |= {name: _mean(values) for name, values in curves.items()}
    numbers |= {f'{name}_end': _mean(values[-LAST:]) for name, values in curves.items()}
    length = real.shape[1] - context
    for name in ('colour', 'shape', 'count', 'moving'):
        kept, possible = numbers[f'{name}_model_end'], numbers[f'{name}_real_end']
        rule = (
            f"{name}: at least {KEPT:.0%} of the real clips' value in the last {min(LAST, length)} of {length} frames"
        )
        passes[rule] = kept >= KEPT * possible
    bounces = numbers['bounces_model'], numbers['bounces_real']
    passes['bouncing: at least half as often as real objects'] = bounces[0] >= bounces[1] / 2
    return Result(
        f'long video: {length} generated frames after {context} real ones, one sample a clip; objects are found by '
        'their colour and the template of their shape',
        len(real),
        context,
        length,
        numbers,
        {name: _plain(values) for name, values in curves.items()},
        passes,
    )


def _centre_errors(generated: np.ndarray, real: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Curves [L] over the objects that the real frame shows by more than half."""
    length = generated.shape[1]
    truth = labels['centres'][:, -length:]
    before = labels['centres'][:, -length - 1, None]
    model, measured = (
        objects.find_objects(video, labels['labels'], labels['colours']) for video in (generated, real[:, -length:])
    )
    shown = measured.found & (measured.hidden < 0.5) & (measured.area > 0.5)

    def over_shown(values: np.ndarray) -> np.ndarray:
        return _frame_means(np.where(shown, values, np.nan))

    return {
        'centre_error_model': over_shown(np.linalg.norm(model.centre - truth, axis=-1)),
        'centre_error_real': over_shown(np.linalg.norm(measured.centre - truth, axis=-1)),
        'centre_error_repeat_last_context': over_shown(np.linalg.norm(before - truth, axis=-1)),
        'found_model': over_shown(model.found.astype(float)),
    }


def _survival(seen: objects.Objects, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Curves [T]."""
    present = np.broadcast_to(seen.present[:, None], seen.found.shape)

    def over_objects(values: np.ndarray) -> np.ndarray:
        return _frame_means(np.where(present, values, np.nan))

    right_count = seen.count == seen.present.sum(axis=1)[:, None]
    steps = np.linalg.norm(np.diff(seen.centre, axis=1, prepend=np.nan), axis=-1)
    return {
        'colour': over_objects(seen.found),
        'shape': over_objects(seen.found & (seen.shape == labels[:, None])),
        'count': (right_count & (seen.extra < objects.MIN_BODY)).mean(axis=0),
        'moving': over_objects(_moving(seen.centre)),
        'speed': over_objects(steps),
    }


def _moving(centre: np.ndarray) -> np.ndarray:
    """Whether an object [B,T,O,2] got about during the last steps, by the box around its centres: bool [B,T,O]."""
    padded = np.pad(centre, [(0, 0), (MOTION_FRAMES, 0), (0, 0), (0, 0)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, MOTION_FRAMES + 1, axis=1)
    low = np.fmin.reduce(windows, axis=-1)
    high = np.fmax.reduce(windows, axis=-1)
    return np.linalg.norm(high - low, axis=-1) >= MOVING  # NaN, never seen, is not moving


def _bounces(seen: objects.Objects) -> float | None:
    """Changes of direction of an object in 100 frames, both axes together."""
    turns, frames = 0, seen.present.sum() * seen.centre.shape[1]
    for track in rearrange(seen.centre, 'b t o xy -> (b o xy) t'):
        turns += _reversals(track[np.isfinite(track)])
    return float(100 * turns / frames) if frames else None


def _reversals(track: np.ndarray) -> int:
    """How often a coordinate [T] turns round, each time after and before more than REVERSAL pixels one way."""
    if not track.size:
        return 0
    turns, direction, extreme = 0, 0.0, track[0]
    for value in track[1:]:
        if direction * (value - extreme) >= 0 and direction:
            extreme = value  # further the same way
        elif abs(value - extreme) > REVERSAL:
            turns += direction != 0
            direction, extreme = np.sign(value - extreme), value
    return turns


def _frame_means(values: np.ndarray) -> np.ndarray:
    """Per-frame mean [T] of [B,T,O], NaN where a frame has nothing to average."""
    counts = np.isfinite(values).sum(axis=(0, 2))
    sums = np.nansum(values, axis=(0, 2))
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _plain(values: np.ndarray) -> Curve:
    return [float(value) if np.isfinite(value) else None for value in values]
