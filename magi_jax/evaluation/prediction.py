"""Two protocols for `bouncing_objects`: predicted against real frames, and persistence of objects in long videos.

Dimension key: B clips, C context frames, L generated frames, T = C + L, O object slots, H rows, W columns.

Every curve is a list of floats over the generated frames, with None where nothing could be measured. Results therefore
go straight into JSON.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from magi_jax.evaluation import objects, pixels

Curve = list[float | None]

MIN_MARGIN = 3.0  # required dB of mean PSNR above the better baseline
MIN_RATIO = 0.9  # required fraction of the value of real clips at the end of a long video
LAST_FRAMES = 8  # number of frames at the end for that average
MOVING = 2.0  # pixels that a moving object covers in MOTION_FRAMES steps; the slowest real one covers over 4
MOTION_FRAMES = 8
REVERSAL = 2.0  # pixels of motion before and after a bounce, along one axis


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers of one protocol: `curves` per generated frame, `numbers` over all of them."""

    protocol: str  # description of the protocol
    clips: int
    context: int
    generated: int
    numbers: dict[str, float | None]
    curves: dict[str, Curve]
    passes: dict[str, bool]  # rule in words -> True if satisfied

    def to_json(self) -> dict[str, Any]:
        """Return all fields as a dict of JSON types."""
        return dataclasses.asdict(self)


def score_prediction(generated: np.ndarray, real: np.ndarray, labels: Mapping[str, np.ndarray] | None = None) -> Result:
    """Compare the continuation of C real frames with the real continuation.

    Args:
      generated: uint8 [B,L,H,W,3], without the context.
      real: uint8 [B,C+L,H,W,3].
      labels: labels of `bouncing_objects/shapes`, to measure objects as well: labels and colours [B,O], centres
        [B,C+L,O,2].

    Returns:
      curves: psnr_model and psnr_<baseline>. With labels also, over objects that are more than half visible in the real
        frame: centre_error_model (pixels, over found objects), centre_error_real (error of the measurement on real
        frames), centre_error_repeat_last_context and found_model.
      numbers: means of the curves, and margins in dB.

    Raises:
      ValueError: the clips do not match, or as in `objects.find_objects`.
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
            f'mean PSNR at least {MIN_MARGIN:g} dB above the better baseline': bool(margin >= MIN_MARGIN),
            f'PSNR above both baselines at generated frame {length}': bool(last > 0),
        },
    )


def score_rollout(generated: np.ndarray, real: np.ndarray, labels: Mapping[str, np.ndarray], context: int) -> Result:
    """Measure how well a long generated video keeps its objects, beside real clips of the same length.

    Real curves are below 1 as well, because objects hide each other. Positions are not compared: a small error of the
    speed moves an object far away after 64 frames, but the video still looks right.

    Args:
      generated: uint8 [B,T,H,W,3], whose first C frames are the real context.
      real: uint8 [B,T,H,W,3].
      labels: labels of `bouncing_objects/shapes`: labels and colours [B,O].
      context: C >= 1.

    Returns:
      curves: <name>_model and <name>_real, as fractions of all objects or clips. Names are colour (objects found by
        colour with plausible area), shape (found with the right shape), count (clips with the right number of objects
        and no extra ones), moving (objects that moved in the last frames), and speed (pixels per frame).
      numbers: means of the curves, means over the last frames (<name>_model_end), and bounces of an object in 100
        frames.

    Raises:
      ValueError: the clips do not match, or as in `objects.find_objects`.
    """
    if generated.shape != real.shape or not 1 <= context < real.shape[1]:
        raise ValueError(f'cannot compare {list(generated.shape)} with {list(real.shape)} after {context} frames')
    curves, numbers, passes = {}, {}, {}
    for source, video in {'model': generated, 'real': real}.items():
        tracked = objects.find_objects(video, labels['labels'], labels['colours'])
        measured = {name: values[context:] for name, values in _survival(tracked, labels['labels']).items()}
        curves |= {f'{name}_{source}': values for name, values in measured.items()}
        numbers[f'bounces_{source}'] = _bounces(tracked)
    numbers |= {name: _mean(values) for name, values in curves.items()}
    numbers |= {f'{name}_end': _mean(values[-LAST_FRAMES:]) for name, values in curves.items()}
    length = real.shape[1] - context
    for name in ('colour', 'shape', 'count', 'moving'):
        generated_end, real_end = numbers[f'{name}_model_end'], numbers[f'{name}_real_end']
        last = min(LAST_FRAMES, length)
        rule = f"{name}: at least {MIN_RATIO:.0%} of the real clips' value in the last {last} of {length} frames"
        passes[rule] = generated_end >= MIN_RATIO * real_end
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
    """Return curves [L] over the objects that are more than half visible in the real frame."""
    length = generated.shape[1]
    truth = labels['centres'][:, -length:]
    before = labels['centres'][:, -length - 1, None]
    model, measured = (
        objects.find_objects(video, labels['labels'], labels['colours']) for video in (generated, real[:, -length:])
    )
    visible = measured.found & (measured.hidden < 0.5) & (measured.area > 0.5)

    def over_visible(values: np.ndarray) -> np.ndarray:
        return _frame_means(np.where(visible, values, np.nan))

    return {
        'centre_error_model': over_visible(np.linalg.norm(model.centre - truth, axis=-1)),
        'centre_error_real': over_visible(np.linalg.norm(measured.centre - truth, axis=-1)),
        'centre_error_repeat_last_context': over_visible(np.linalg.norm(before - truth, axis=-1)),
        'found_model': over_visible(model.found.astype(float)),
    }


def _survival(tracked: objects.Objects, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return curves [T] of persistence and motion."""
    present = np.broadcast_to(tracked.present[:, None], tracked.found.shape)

    def over_objects(values: np.ndarray) -> np.ndarray:
        return _frame_means(np.where(present, values, np.nan))

    right_count = tracked.count == tracked.present.sum(axis=1)[:, None]
    steps = np.linalg.norm(np.diff(tracked.centre, axis=1, prepend=np.nan), axis=-1)
    return {
        'colour': over_objects(tracked.found),
        'shape': over_objects(tracked.found & (tracked.shape == labels[:, None])),
        'count': (right_count & (tracked.extra < objects.MIN_BODY)).mean(axis=0),
        'moving': over_objects(_moving(tracked.centre)),
        'speed': over_objects(steps),
    }


def _moving(centre: np.ndarray) -> np.ndarray:
    """Return bool [B,T,O]: True if an object [B,T,O,2] moved during the last steps.

    The box around its recent centres decides.
    """
    padded = np.pad(centre, [(0, 0), (MOTION_FRAMES, 0), (0, 0), (0, 0)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, MOTION_FRAMES + 1, axis=1)
    low = np.fmin.reduce(windows, axis=-1)
    high = np.fmax.reduce(windows, axis=-1)
    return np.linalg.norm(high - low, axis=-1) >= MOVING  # an object that was never found has NaN and is not moving


def _bounces(tracked: objects.Objects) -> float | None:
    """Count changes of direction per object in 100 frames, along both axes together."""
    turns, frames = 0, tracked.present.sum() * tracked.centre.shape[1]
    for track in rearrange(tracked.centre, 'b t o xy -> (b o xy) t'):
        turns += _reversals(track[np.isfinite(track)])
    return float(100 * turns / frames) if frames else None


def _reversals(track: np.ndarray) -> int:
    """Count reversals of a coordinate [T] with more than REVERSAL pixels of motion before and after each."""
    if not track.size:
        return 0
    turns, direction, extreme = 0, 0.0, track[0]
    for value in track[1:]:
        if direction * (value - extreme) >= 0 and direction:
            extreme = value  # further in the same direction
        elif abs(value - extreme) > REVERSAL:
            turns += direction != 0
            direction, extreme = np.sign(value - extreme), value
    return turns


def _frame_means(values: np.ndarray) -> np.ndarray:
    """Return the mean [T] per frame of [B,T,O], NaN for a frame without values."""
    counts = np.isfinite(values).sum(axis=(0, 2))
    sums = np.nansum(values, axis=(0, 2))
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _plain(values: np.ndarray) -> Curve:
    return [float(value) if np.isfinite(value) else None for value in values]
