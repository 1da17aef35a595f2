"""Prepares one row of a dataset: from its file to a record, or to the reason why it is skipped."""

import contextlib
import os
import pathlib
from typing import Any

from magi_jax.data import splits, stored_video
from magi_jax.data.decoding import file_text
from magi_jax.data.preparation import robot_records, workers
from magi_jax.data.preparation.listing import Row, Skip
from magi_jax.data.preparation.reencode import Prepared, Settings, Skipped, reencode_file, reencode_frames


def prepare_row(task: tuple[str, Row, Settings]) -> Prepared | Skipped:
    """Prepare the video of one row. Return the video, or the reason why it is skipped.

    `task` is (root, row, settings).
    """
    root, row, settings = task
    path = pathlib.Path(root) / row.path
    if row.offset is None:
        result = reencode_file(path, settings)
        return _time_range(result, row.split, settings) if row.divided and isinstance(result, Prepared) else result
    try:
        return reencode_frames(robot_records.read_trajectory(path, row.offset), robot_records.FPS, settings)
    except robot_records.RecordError as error:
        return Skipped('corrupt', str(error))


def _time_range(prepared: Prepared, split: str, settings: Settings) -> Prepared | Skipped:
    """Return the part of a video that is in a split, cut at keyframes."""
    frames = len(prepared.video)
    start, end = splits.time_ranges(frames, settings.min_frames, settings.keyframe_interval)[split]
    if end - start < settings.min_frames:
        detail = f'{frames} frames are too few for three parts of at least min_frames = {settings.min_frames}'
        return Skipped('too_short', detail)
    return Prepared(stored_video.cut(prepared.video, start, end), prepared.fps)


def is_usable(path: pathlib.Path, settings: Settings, timeout: float) -> bool:
    """Return True if a file can be prepared. Try it in a separate process."""
    task = str(path.parent), Row(path.name, path.name, splits.SPLITS[0]), settings
    with contextlib.closing(workers.run_ordered(prepare_row, iter([task]), 1, timeout)) as results:
        return isinstance(next(results), Prepared)


def make_record(row: Row, result: Prepared, labels: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a video as an example of the dataset, and its entry in the report."""
    video, entry = result.video, {'id': row.video_id, 'num_frames': len(result.video), 'fps': result.fps}
    example = {'video': video.stream, 'packet_sizes': video.sizes, 'video_id': os.fsencode(row.video_id)}
    example |= {'num_frames': len(video), 'fps': result.fps}
    if labels:
        example['label'] = -1 if row.label is None else labels.index(row.label)
    return example, entry | {'bytes': len(video.stream)}


def make_skip(row: Row, result: Skipped | workers.WorkerFailure, timeout: float) -> Skip:
    """Return the Skip of a row that has no video."""
    if isinstance(result, Skipped):
        reason, detail = result.reason, result.detail
    elif result.raised:
        reason, detail = 'failed', result.cause
    elif result.timed_out:
        reason, detail = 'timed_out', f'not decoded in {timeout:g} s'
    else:
        reason, detail = 'crashed', f'the process that decoded it {result.cause}'
    return Skip(row.video_id, file_text(row.path), row.split, reason, detail)
