"""One labelled progress bar for the stages of a long command: '2 of 4: sampling clips'."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from . import console

BAR = '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'


class Stages:
    """A bar that is emptied and named anew at every stage; use it as a context manager.

    Args:
      labels: of the stages, in order.
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
        """Begin the next stage, of so many steps."""
        label = f'{self._number + 1} of {len(self._labels)}: {self._labels[self._number]}'
        self._number, self._done = self._number + 1, 0
        if self._bar is None:
            look = {'bar_format': BAR, 'dynamic_ncols': True, 'leave': False}
            self._bar = tqdm(desc=label, total=max(1, total), disable=not console.is_first(), **look)
            return
        self._bar.set_description_str(label, refresh=False)
        self._bar.reset(max(1, total))

    def steps(self, items: Iterable[Any], total: int) -> Iterator[Any]:
        """Begin the next stage and hand out its items, one a step."""
        self.next(total)
        for item in items:
            yield item
            self._done += 1
            self._advance(self._done - self._bar.n)

    def frames(self, made: Iterator[Any], total: int, parts: int = 1) -> Iterator[Any]:
        """Wrap newly sampled frames, each waited for: together they are one of the parts of the current step."""
        for frame in made:
            yield jax.block_until_ready(frame)
            # Frames never fill the step: what follows them, such as a comparison, belongs to it.
            self._advance(min(1 / (total * parts), self._done + 1 - self._bar.n))

    def _advance(self, amount: float) -> None:
        if not self._bar.disable:
            self._bar.update(amount)
