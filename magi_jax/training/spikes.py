"""Detection of loss spikes: the loss of a step far above those just before it."""

import statistics
from collections.abc import Sequence

WINDOW = 50  # losses that the newest is compared with
FACTOR = 5.0  # a noisy loss of small batches stays within about 3 times its median


def spike_message(losses: Sequence[float], step: int, gradient_norm: float) -> str:
    """Return a one-line warning when the last of `losses` is a spike, else ''.

    A spike is more than `FACTOR` times the median of the up to `WINDOW` losses before it; fewer than 5 decide nothing.

    Args:
      losses: of successive steps, or their means over successive intervals.
      step: of the last loss.
      gradient_norm: of that step, for the message.
    """
    before = list(losses[-WINDOW - 1 : -1])
    if len(before) < 5:
        return ''
    usual = statistics.median(before)
    if not 0.0 < FACTOR * usual < losses[-1]:
        return ''
    return (
        f'step {step}: the loss rose to {losses[-1]:.4g}, {losses[-1] / usual:.0f} times its usual {usual:.4g} '
        f'(gradient norm {gradient_norm:.4g}): if it stays high, lower optim.learning_rate or optim.clip_norm'
    )
