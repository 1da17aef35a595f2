"""Training step of the PyTorch reference: the masked diffusion loss of MAGI, fused AdamW and EMA.

It starts at tokens; the frozen tokenizer is not part of the comparison.

Dimension key: B clips, T latent frames, N tokens of a frame, C token width, M diffusion draws a token.
"""

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

from magi_jax.benchmarks.torch_model import Magi, autocast
from magi_jax.config import MagiConfig, MagiMaskingConfig, OptimConfig
from magi_jax.models.clip_shape import ClipShape

Metrics = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class TrainingDraws:
    """All random numbers of one step on B clips, without dropout.

    Attributes:
      mask: bool [B, T, N], True = hidden.
      level: int64 [B, T], noise level of each observed frame.
      noise: float32 [B, T, N, C], N(0, 1), the noise on observed frames at unit level.
      timestep: int64 [B, M, T, N], diffusion step of each draw.
      diffusion_noise: float32 [B, M, T, N, C], N(0, 1).
    """

    mask: Tensor
    level: Tensor
    noise: Tensor
    timestep: Tensor
    diffusion_noise: Tensor

    def part(self, number: int, parts: int) -> 'TrainingDraws':
        """Return the draws of one micro-batch: every `parts`-th clip from `number` on."""
        fields = {field.name: getattr(self, field.name)[number::parts] for field in dataclasses.fields(self)}
        return TrainingDraws(**fields)


def training_draws(config: MagiConfig, shape: ClipShape, clips: int, device: torch.device) -> TrainingDraws:
    """Draw the random numbers of a step from the generator of torch on `device`."""
    masking, head = config.masking, config.model.head
    frames, tokens, width = shape.frames, shape.tokens, shape.token_width
    levels = 1 if masking.noise_per == 'clip' else frames
    level = torch.randint(shape.noise_levels, (clips, levels), device=device)
    return TrainingDraws(
        mask=_token_masks(masking, clips, frames, tokens, device),
        level=level.expand(clips, frames),
        noise=torch.randn(clips, frames, tokens, width, device=device),
        timestep=torch.randint(head.timesteps, (clips, head.repeats, frames, tokens), device=device),
        diffusion_noise=torch.randn(clips, head.repeats, frames, tokens, width, device=device),
    )


def _token_masks(config: MagiMaskingConfig, clips: int, frames: int, tokens: int, device: torch.device) -> Tensor:
    """Draw masks bool [B, T, N] with ceil(N * ratio) hidden tokens; ratio and order per frame or clip (A7)."""
    rows = 1 if config.draw_per == 'clip' else frames
    ratio = torch.empty((1, 1) if config.draw_per == 'batch' else (clips, rows), device=device)
    nn.init.trunc_normal_(ratio, config.ratio_mean, config.ratio_std, config.ratio_min, config.ratio_max)
    rank = torch.rand(clips, rows, tokens, device=device).argsort(-1).argsort(-1)
    return (rank < torch.ceil(tokens * ratio)[..., None]).expand(clips, frames, tokens)


def masked_diffusion_loss(
    model: Magi, tokens: Tensor, interval: Tensor, draws: TrainingDraws
) -> tuple[Tensor, Metrics]:
    """Return the mean of squared error + `bound_weight` * variational bound over the masked tokens.

    Args:
      model: the model, in training mode for dropout.
      tokens: float32 [B, T, N, C], clean.
      interval: int64 [B], 1..shape.intervals.
      draws: random numbers of this step.

    Returns:
      (loss, {'loss', 'mse', 'vb'}), float32 scalars; the metrics are detached.
    """
    config, masking = model.config, model.config.masking
    level = draws.level
    noised = tokens + model.noise_std[level][..., None, None] * draws.noise
    noise_masked, masked_level = masking.noise_visible, level
    if config.model.teacher_forcing == 'masked':
        noise_masked = masking.noise_masked_teacher
        masked_level = level if noise_masked else torch.zeros_like(level)
    with autocast(tokens.device, config.train.compute_dtype):
        z = model.trunk(noised, noised if noise_masked else tokens, draws.mask, interval, masked_level)
        clean = tokens[:, None]
        x = model.diffusion.add_noise(clean, draws.diffusion_noise, draws.timestep)
        output = model.head(x, draws.timestep, z[:, None])
    mse, vb = model.diffusion.loss(output, clean, draws.diffusion_noise, draws.timestep)
    weight = draws.mask.float()
    if not masking.first_frame_loss:
        weight = torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:]], dim=1)
    mse, vb = ((value.mean(1) * weight).sum() / weight.sum() for value in (mse, vb))
    loss = mse + config.model.head.bound_weight * vb
    return loss, {'loss': loss.detach(), 'mse': mse.detach(), 'vb': vb.detach()}


class Trainer:
    """Model, optimizer, schedule and EMA. `step` runs one optimizer step.

    Args:
      model: model on its device; it is trained in place.
      compiled: compile the loss with `torch.compile`.
      mode: mode of `torch.compile`.

    Attributes:
      model: the trained model.
      average: a copy of the model with the EMA parameters.
    """

    def __init__(self, model: Magi, compiled: bool = False, mode: str = 'default'):
        optim = model.config.optim
        self.model, self.config = model.train(), model.config
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, optim), optim.learning_rate, (optim.b1, optim.b2), optim.eps, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.loss = torch.compile(masked_diffusion_loss, mode=mode) if compiled else masked_diffusion_loss
        self.steps_taken = 0

    def step(self, tokens: Tensor, interval: Tensor, draws: TrainingDraws) -> Metrics:
        """Run one optimizer step on clean tokens float32 [B, T, N, C] and interval int64 [B].

        Returns:
          'loss', 'mse', 'vb' and 'grad_norm' (before clipping), on the device: reading one waits for the step.
        """
        parts, totals = self.config.optim.accumulate, {}
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(parts):
            part = tokens[number::parts], interval[number::parts], draws.part(number, parts)
            loss, metrics = self.loss(self.model, *part)
            (loss / parts).backward()
            totals = {name: totals.get(name, 0) + value / parts for name, value in metrics.items()}
        totals['grad_norm'] = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self._average()
        self.steps_taken += 1
        return totals

    @torch.no_grad()
    def _average(self) -> None:
        optim, step = self.config.optim, self.steps_taken
        decay = min(optim.ema_decay, (1 + step) / (10 + step)) if optim.ema_warmup else optim.ema_decay
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _learning_rate_factor(self, step: int) -> float:
        """Return the factor of a step: linear warm-up, constant, then cosine or linear decay over `decay_fraction`."""
        optim, steps = self.config.optim, self.config.train.steps
        factor = min(1.0, step / optim.warmup_steps) if optim.warmup_steps else 1.0
        decay_steps = max(1, round(optim.decay_fraction * steps))
        done = min(1.0, max(0.0, step - (steps - decay_steps)) / decay_steps)
        falling = {'constant': 1.0, 'linear': 1 - done, 'cosine': 0.5 * (1 + math.cos(math.pi * done))}
        return factor * falling[optim.schedule]


def _parameter_groups(model: Magi, config: OptimConfig) -> list[dict]:
    """Split parameters so that weight decay spares biases, norms and the diffusion head (MAR)."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = name.startswith('head.') or name.endswith('bias') or id(parameter) in norms
        groups[not spared].append(parameter)
    return [
        {'params': groups[True], 'weight_decay': config.weight_decay},
        {'params': groups[False], 'weight_decay': 0.0},
    ]
