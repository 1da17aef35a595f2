"""The PyTorch side of the comparison, given the weights and random numbers of `jax_side`. Arrays out."""

import dataclasses
import functools

import numpy as np
import torch

from magi_jax.benchmarks.torch_model import Magi
from magi_jax.benchmarks.torch_sampling import Sampler
from magi_jax.benchmarks.torch_training import Trainer, TrainingDraws, masked_diffusion_loss
from magi_jax.benchmarks.weights import from_state_dict
from magi_jax.config import Config
from tests.benchmarks import jax_side


def model(config: Config) -> Magi:
    """With `jax_side.params`."""
    return Magi(config, jax_side.objective(config).shape).load_params(jax_side.params(config))


def step_arguments(config: Config, step: int = 0) -> tuple[torch.Tensor, torch.Tensor, TrainingDraws]:
    """Tokens, intervals and draws of a step."""
    draws = {name: tensor(value) for name, value in jax_side.training_draws(config, step).items()}
    return tensor(jax_side.clean_tokens(step)), tensor(jax_side.batch(step)['interval']), TrainingDraws(**draws)


def tensor(array) -> torch.Tensor:
    """A copy; integers as int64."""
    value = torch.tensor(np.asarray(array))
    return value.long() if value.dtype == torch.int32 else value


@functools.cache
def loss_and_gradients(config: Config, compiled: bool = False) -> tuple[dict, dict]:
    """Metrics, and gradients in the JAX tree."""
    reference = model(config).train()
    loss = torch.compile(masked_diffusion_loss) if compiled else masked_diffusion_loss
    value, metrics = loss(reference, *step_arguments(config))
    value.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    return _numbers(metrics), from_state_dict(gradients, jax_side.params(config))


@functools.cache
def train(config: Config) -> tuple[dict, dict, list[dict]]:
    """As `jax_side.train`, in the JAX tree."""
    trainer = Trainer(model(config))
    history = [_numbers(trainer.step(*step_arguments(config, step))) for step in range(jax_side.STEPS)]
    trees = (from_state_dict(m.state_dict(), jax_side.params(config)) for m in (trainer.model, trainer.average))
    return *trees, history


@functools.cache
def sample(config: Config, context: int, frames: int, compiled: bool = False) -> np.ndarray:
    """New frames [B, frames - context, N, C]."""
    interval = tensor(jax_side.batch()['interval'])
    tokens, draws = tensor(jax_side.context_tokens(context)), VideoDraws(config)
    made = Sampler(model(config), compiled).frames(tokens, frames, interval, draws)
    return torch.stack(list(made), dim=1).numpy()


@dataclasses.dataclass
class VideoDraws:
    """The JAX sampler's draws as tensors."""

    config: Config

    def __getattr__(self, name: str):
        draw = getattr(jax_side.video_draws(self.config), name)
        return lambda frame: tensor(draw(frame))


def _numbers(metrics: dict) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in metrics.items()}
