"""The progress bar of a call that samples videos."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm.auto import tqdm

Progress = Callable[[Iterator[Any], int], Iterator[Any]]  # (new frames, their number) -> the same frames


@contextlib.contextmanager
def frame_bar(parts: int, enabled: bool) -> Iterator[Progress]:
    """Give a `progress` function for `sample_clips` that shows one bar for all frames of all parts.

    Only the first process shows it, and only in a terminal or notebook. It then waits for each frame, because dispatch
    alone would fill the bar at once.

    Args:
      parts: number of calls of `progress`.
      enabled: False for no bar.
    """
    disable = None if enabled and jax.process_index() == 0 else True  # None: tqdm shows the bar if stderr is a terminal
    with tqdm(unit='frame', dynamic_ncols=True, leave=False, disable=disable) as bar:

        def progress(frames: Iterator[Any], total: int) -> Iterator[Any]:
            if bar.disable:
                return frames
            if bar.total is None:
                bar.reset(parts * total)
            return _counted(frames, bar)

        yield progress


def _counted(frames: Iterator[Any], bar: tqdm) -> Iterator[Any]:
    for frame in frames:
        yield jax.block_until_ready(frame)
        bar.update()
