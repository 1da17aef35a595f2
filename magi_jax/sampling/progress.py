"""The progress bar of a call that samples videos."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm.auto import tqdm

Progress = Callable[[Iterator[Any], int], Iterator[Any]]  # (new frames, their number) -> the same frames


@contextlib.contextmanager
def frame_bar(parts: int, shown: bool) -> Iterator[Progress]:
    """Give a `progress` of `sample_clips` that shows one bar for all frames of all parts.

    The first process shows it, in a terminal or notebook only. Each frame is then waited for: its dispatch alone would
    fill the bar at once.

    Args:
      parts: how often `progress` will be called.
      shown: False: no bar.
    """
    disable = None if shown and jax.process_index() == 0 else True  # None: shown if stderr is a terminal
    with tqdm(unit='frame', dynamic_ncols=True, leave=False, disable=disable) as bar:

        def progress(made: Iterator[Any], total: int) -> Iterator[Any]:
            if bar.disable:
                return made
            if bar.total is None:
                bar.reset(parts * total)
            return _counted(made, bar)

        yield progress


def _counted(made: Iterator[Any], bar: tqdm) -> Iterator[Any]:
    for frame in made:
        yield jax.block_until_ready(frame)
        bar.update()
