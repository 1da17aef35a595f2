"""Cosine diffusion process of the PyTorch reference: learned-range loss and one reverse step (improved DDPM).

The network output [..., 2C] has two halves: the prediction (noise, clean token or velocity) and the variance logits.

Dimension key: ... any leading axes (one diffusion step index i for each), C token width, S steps of the process.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Prediction = Literal['noise', 'clean', 'velocity']


class Diffusion(nn.Module):
    """Tables of a process as float32 buffers [S], computed in float64. They move with the module but are not saved.

    Attributes:
      timestep: int64 [S], the step of the full process that a step stands for: what the network is told.
    """

    def __init__(self, prediction: Prediction, betas: np.ndarray, timesteps: np.ndarray):
        super().__init__()
        self.prediction = prediction
        abar = np.cumprod(1 - betas)
        previous = np.append(1.0, abar[:-1])
        variance = betas * (1 - previous) / (1 - abar)
        variance[0] = variance[1]  # the variance of step 0 is 0 and has no logarithm
        tables = {
            'sqrt_abar': np.sqrt(abar),
            'sqrt_one_minus_abar': np.sqrt(1 - abar),
            'log_beta': np.log(betas),
            'posterior_log_variance': np.log(variance),
            'posterior_clean': betas * np.sqrt(previous) / (1 - abar),
            'posterior_noisy': (1 - previous) * np.sqrt(1 - betas) / (1 - abar),
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)
        self.register_buffer('timestep', torch.tensor(timesteps, dtype=torch.long), persistent=False)

    @classmethod
    def full(cls, prediction: Prediction, steps: int) -> 'Diffusion':
        """Make the process of training, with all `steps` steps."""
        return cls(prediction, _cosine_betas(steps), np.arange(steps))

    @classmethod
    def respaced(cls, prediction: Prediction, train_steps: int, steps: int, start: int) -> 'Diffusion':
        """Make the process of sampling: `steps` of `train_steps` steps, evenly from 0 to `start`.

        Its marginals are those of training.
        """
        timesteps = np.rint(np.cumsum([0.0, *[start / (steps - 1)] * (steps - 1)])).astype(np.int64)
        abar = np.cumprod(1 - _cosine_betas(train_steps))[timesteps]
        return cls(prediction, 1 - abar / np.append(1.0, abar[:-1]), timesteps)

    def add_noise(self, clean: Tensor, noise: Tensor, i: Tensor) -> Tensor:
        """Add noise: clean, noise [..., C], i int64 [...] to x_i [..., C]."""
        return self.sqrt_abar[i][..., None] * clean + self.sqrt_one_minus_abar[i][..., None] * noise

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared error of the prediction, and the bound in bits that trains only the variance half.

        Args:
          output: [..., 2C] of the network at x_i = add_noise(clean, noise, i).
          clean: [..., C].
          noise: [..., C].
          i: int64 [...].

        Returns:
          (mse, vb), each float32 [...], averaged over C.
        """
        predicted, logits = output.float().chunk(2, dim=-1)
        x = self.add_noise(clean, noise, i)
        if self.prediction == 'noise':
            target = noise
        elif self.prediction == 'clean':
            target = clean
        else:
            target = self.sqrt_abar[i][..., None] * noise - self.sqrt_one_minus_abar[i][..., None] * clean
        mse = (predicted - target).square().mean(-1)
        mean, log_variance = self._reverse(predicted.detach(), logits, x, i, math.inf)
        true_mean, true_log_variance = self._posterior_mean(clean, x, i), self.posterior_log_variance[i][..., None]
        kl = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        nll = -_discretised_log_likelihood(clean, mean, 0.5 * log_variance)
        return mse, torch.where((i == 0)[..., None], nll, kl).mean(-1) / math.log(2.0)

    def reverse_step(self, output: Tensor, x: Tensor, i: Tensor, x0_clip: float) -> tuple[Tensor, Tensor]:
        """Return mean and log variance [..., C] of p(x_{i-1} | x_i = x); i int64 [...] or [1].

        A finite `x0_clip` bounds the clean token, and the variance to the range in which it is learned. inf bounds
        neither (MAR).
        """
        predicted, logits = output.chunk(2, dim=-1)
        if math.isfinite(x0_clip):
            logits = logits.clamp(-1, 1)
        return self._reverse(predicted, logits, x, i, x0_clip)

    def _reverse(
        self, predicted: Tensor, logits: Tensor, x: Tensor, i: Tensor, x0_clip: float
    ) -> tuple[Tensor, Tensor]:
        signal, noise = self.sqrt_abar[i][..., None], self.sqrt_one_minus_abar[i][..., None]
        if self.prediction == 'noise':
            clean = x / signal - noise / signal * predicted
        elif self.prediction == 'clean':
            clean = predicted
        else:
            clean = signal * x - noise * predicted
        fraction = (logits + 1) / 2
        low, high = self.posterior_log_variance[i][..., None], self.log_beta[i][..., None]
        log_variance = fraction * high + (1 - fraction) * low
        return self._posterior_mean(clean.clamp(-x0_clip, x0_clip), x, i), log_variance

    def _posterior_mean(self, clean: Tensor, x: Tensor, i: Tensor) -> Tensor:
        return self.posterior_clean[i][..., None] * clean + self.posterior_noisy[i][..., None] * x


def _cosine_betas(steps: int) -> np.ndarray:
    abar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def _gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (-1.0 + log_variance2 - log_variance1 + torch.exp(log_variance1 - log_variance2) + distance)


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log probabilities of bins of half-width 1/255 around x; bins at +-0.999 include the tails."""
    inverse_std = torch.exp(-log_std)
    upper = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the tanh approximation of the normal CDF that defines the loss of improved DDPM and MAR."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
