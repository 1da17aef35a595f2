"""A progress bar for the stages of a long command, with a label such as '2 of 4: sampling clips'."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from . import console

BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'


class Stages:
    """Show a progress bar that restarts with a new label at every stage. Use it as a context manager.

    Args:
      labels: labels of the stages, in order.
    """

    def __init__(self, labels: Iterable[str]):
        self._labels, self._number, self._done = list(labels), 0, 0
        self._bar: tqdm | None = None

    def __enter__(self) -> 'Stages':
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def next(self, total: int = 1) -> None:
        """Begin the next stage, which has `total` steps."""
        label = f'{self._number + 1} of {len(self._labels)}: {self._labels[self._number]}'
        self._number, self._done = self._number + 1, 0
        if self._bar is None:
            format_options = {'bar_format': BAR, 'dynamic_ncols': True, 'leave': False}
            self._bar = tqdm(desc=label, total=max(1, total), disable=not console.is_first(), **format_options)
            return
        self._bar.set_description_str(label, refresh=False)
        self._bar.reset(max(1, total))

    def steps(self, items: Iterable[Any], total: int) -> Iterator[Any]:
        """Begin the next stage and yield its items, one for each step."""
        self.next(total)
        for item in items:
            yield item
            self._done += 1
            self._advance(self._done - self._bar.n)

    def frames(self, frames: Iterator[Any], total: int, parts: int = 1) -> Iterator[Any]:
        """Yield newly sampled frames when they are computed, and advance the bar.

        These frames are one of `parts` equal parts of the current step.
        """
        for frame in frames:
            yield jax.block_until_ready(frame)
            # Frames never complete a step, because later work such as a comparison belongs to it too.
            self._advance(min(1 / (total * parts), self._done + 1 - self._bar.n))

    def _advance(self, amount: float) -> None:
        if not self._bar.disable:
            self._bar.update(amount)
