"""The configuration of a benchmark, and the interface of the implementations."""

import dataclasses
from typing import Any, Literal, Protocol

import numpy as np

from magi_jax.config import MagiConfig

COMPARED_STEPS = 3  # the first learning rate of a warm-up is 0, so the second update shows in the third step
COMPARED_FRAMES = 2


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """The configuration of one benchmark.

    Attributes:
      task: one call is one optimizer step (train) or one batch of videos without context (sample).
      config: the experiment; both tasks use `config.data.batch_size` clips.
      frames: length of the videos.
      rounds: number of turns of each implementation.
      seconds: approximate duration of the counted calls of a turn.
      tensor_float: use TensorFloat-32 in float32 matrix products on GPUs, in all implementations.
      torch_mode: mode of `torch.compile`.
    """

    task: Literal['train', 'sample']
    config: MagiConfig
    frames: int
    rounds: int
    seconds: float
    tensor_float: bool
    torch_mode: str


class Implementation(Protocol):
    """One framework on one task, in its own process.

    Attributes:
      first: seconds ('wall', 'cpu') of the first call of the timed program, compilation included.
    """

    first: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """Return 'framework' and 'device' as texts, 'kind': 'cpu' or 'gpu', and 'threads'."""

    def outputs(self, problem: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return outputs of the first calls for the weights, inputs and draws of the problem, without dropout."""

    def start(self, problem: dict[str, Any]) -> None:
        """Prepare for `run`, with one call."""

    def run(self, calls: int) -> None:
        """Run `calls` calls with inputs on the device and own random draws; return when they are finished."""

    def matmul(self) -> None:
        """Run one large matrix product in the compute dtype; return when it is finished."""

    def device_bytes(self) -> int | None:
        """Return the peak memory in use on the device; None on a CPU."""
