"""Detection of loss spikes: a loss far above the median of the preceding ones."""

import statistics
from collections.abc import Sequence

WINDOW = 50  # number of preceding losses for the median
FACTOR = 5.0  # noisy losses of small batches stay within about 3 times their median


def spike_message(losses: Sequence[float], step: int, gradient_norm: float) -> str:
    """Return a one-line warning if the last of `losses` is a spike, else ''.

    A spike exceeds `FACTOR` times the median of up to `WINDOW` losses before it. With fewer than 5 such losses there is
    no warning.

    Args:
      losses: losses of successive steps, or their means over successive log intervals.
      step: step of the last loss.
      gradient_norm: gradient norm of that step, for the message.
    """
    before = list(losses[-WINDOW - 1 : -1])
    if len(before) < 5:
        return ''
    median = statistics.median(before)
    if not 0.0 < FACTOR * median < losses[-1]:
        return ''
    return (
        f'step {step}: the loss rose to {losses[-1]:.4g}, {losses[-1] / median:.0f} times its median {median:.4g} '
        f'(gradient norm {gradient_norm:.4g}): if it stays high, lower optim.learning_rate or optim.clip_norm'
    )
