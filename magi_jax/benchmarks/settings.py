"""What a benchmark is asked to do, and what the two frameworks have in common."""

import dataclasses
from typing import Any, Literal, Protocol

import numpy as np

from magi_jax.config import Config

COMPARED_STEPS = 3  # the first learning rate of a warm-up is 0: the second step's update shows in the third
COMPARED_FRAMES = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """One benchmark.

    Attributes:
      task: a call is one optimizer step, or one batch of videos from nothing.
      config: the experiment; `config.data.batch_size` clips in both tasks.
      frames: length of the videos.
      rounds: how often every contestant has its turn.
      seconds: that the counted calls of a turn last, about.
      tensor_float: TensorFloat-32 in float32 matrix products, on GPUs that have it; the same on both sides.
      torch_mode: of `torch.compile`.
    """

    task: Literal['train', 'sample']
    config: Config
    frames: int
    rounds: int
    seconds: float
    tensor_float: bool
    torch_mode: str


class Contestant(Protocol):
    """A framework at a task, in a process of its own.

    Attributes:
      first: seconds ('wall', 'cpu') of the first call of the program that is timed, with all its compilation.
    """

    first: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """'framework' and 'device' as texts, 'kind': 'cpu' or 'gpu', 'threads'."""

    def outputs(self, problem: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the first calls give from the problem's weights, inputs and draws, dropout off."""

    def start(self, problem: dict[str, Any]) -> None:
        """Makes ready for `run`, with one call behind it."""

    def run(self, calls: int) -> None:
        """So many calls, with inputs on the device and random draws of its own; returns when they are finished."""

    def matmul(self) -> None:
        """One large matrix product in the compute dtype, finished on return."""

    def device_bytes(self) -> int | None:
        """The most memory in use on the device; None on a CPU."""
