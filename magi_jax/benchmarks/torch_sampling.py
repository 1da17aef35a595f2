"""Video sampler of the PyTorch reference: prefill, K mask steps a frame with a KV cache, commit, slide (MAGI §4).

It maps tokens to tokens; the frozen tokenizer is not part of the comparison.

Dimension key: B clips, F frames of the video, W frame slots of the window, N tokens of a frame, C token width, D width,
K mask steps that reveal something, S denoise steps, P largest number of tokens revealed in a step.
"""

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from magi_jax.benchmarks.torch_diffusion import Diffusion
from magi_jax.benchmarks.torch_layers import KVCache
from magi_jax.benchmarks.torch_model import Magi, autocast
from magi_jax.config import ConfigError
from magi_jax.masking.tokens import masked_counts, reveal_counts

OPENING_FRAMES = 2  # number of first frames that `opening_temperature` applies to


class VideoDraws(Protocol):
    """All random numbers of a video. Frames are counted from its beginning, context included."""

    def order(self, frame: int) -> Tensor:
        """Return int64 [B, N], a permutation of the tokens of a frame; the last ones are revealed first."""

    def noise(self, frame: int) -> Tensor:
        """Return N(0, 1) float32 [K, S + 1, B, P, C]: [:, i] is added by denoise step i, [:, S] is the start."""

    def context_noise(self, frame: int) -> Tensor:
        """Return N(0, 1) float32 [B, N, C], the noise of a finished frame as context (A2)."""


class RandomDraws:
    """`VideoDraws` from the generator of torch."""

    def __init__(self, model: Magi, clips: int, device: torch.device):
        sampler, shape = model.config.sampler, model.shape
        counts = reveal_counts(shape.tokens, sampler.mask_steps)
        self._tokens, self._device = (clips, shape.tokens, shape.token_width), device
        steps = int((counts > 0).sum()), sampler.denoise_steps + 1
        self._noise = (*steps, clips, int(counts.max()), shape.token_width)

    def order(self, frame: int) -> Tensor:
        return torch.rand(self._tokens[:2], device=self._device).argsort(-1)

    def noise(self, frame: int) -> Tensor:
        return torch.randn(self._noise, device=self._device)

    def context_noise(self, frame: int) -> Tensor:
        return torch.randn(self._tokens, device=self._device)


class Sampler:
    """Draws videos from a model. The trunk computes in `config.train.compute_dtype`, the head in float32.

    Args:
      model: trained model; the sampler copies it with linear layers of the trunk in the compute dtype.
      compiled: compile trunk and denoise step with `torch.compile`, with one shape for all mask steps.
      mode: mode of `torch.compile`; 'reduce-overhead' captures CUDA graphs.
    """

    def __init__(self, model: Magi, compiled: bool = False, mode: str = 'default'):
        self.config, self.shape, self.device = model.config, model.shape, model.noise_std.device
        head, sampler = self.config.model.head, self.config.sampler
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.dtype = getattr(torch, self.config.train.compute_dtype)
        for module in self.model.trunk.modules():
            if isinstance(module, nn.Linear):
                module.to(self.dtype)
        process = Diffusion.respaced(head.prediction, head.timesteps, sampler.denoise_steps, sampler.start)
        self.process = process.to(self.device)
        counts = reveal_counts(self.shape.tokens, sampler.mask_steps)
        remaining = masked_counts(self.shape.tokens, sampler.mask_steps)
        self.reveals = [(int(first), int(count)) for first, count in zip(remaining, counts) if count]
        self.largest = int(counts.max())
        self.static_rows = compiled
        self.predict, self.observe, self.denoise = self.model.trunk.predict, self.model.trunk.observe, self._denoise
        if compiled:
            self.predict = torch.compile(self.predict, mode=mode)
            self.observe = torch.compile(self.observe, mode=mode)
            self.denoise = torch.compile(self.denoise, mode=mode)

    def frames(self, context: Tensor, frames: int, interval: Tensor, draws: VideoDraws) -> Iterator[Tensor]:
        """Yield the clean tokens float32 [B, N, C] of every new frame.

        Args:
          context: clean tokens float32 [B, c, N, C], c >= 0; if they exceed the window, the last ones count.
          frames: length of the whole video, context included.
          interval: int64 [B], 1..shape.intervals.
          draws: random numbers of this video.

        Raises:
          ConfigError: the context is longer than the video, or the window has no room for a new frame.
        """
        window = _Window(self, context, frames, interval, draws)
        for frame in range(context.shape[1], frames):
            window.make_room()
            tokens = self._sample_frame(window, draws.order(frame), draws.noise(frame), frame)
            window.commit(tokens, frame)
            yield tokens

    @torch.inference_mode()
    def _sample_frame(self, window: '_Window', order: Tensor, noise: Tensor, frame: int) -> Tensor:
        """Run the K mask steps of a frame: one trunk pass each, then the head on the revealed tokens.

        Return [B, N, C].
        """
        sampler, width = self.config.sampler, self.config.model.width
        temperature = sampler.opening_temperature if frame < OPENING_FRAMES else sampler.temperature
        # The last denoise step adds no noise, and temperature does not scale the start.
        scale = torch.full((sampler.denoise_steps + 1,), temperature, device=self.device)
        scale[0], scale[-1] = 0.0, 1.0
        noise = noise * scale[:, None, None, None]
        time = self.model.head.embed_time(self.process.timestep)
        values = torch.zeros(*order.shape, self.shape.token_width, device=self.device)
        mask = torch.ones_like(order, dtype=torch.bool)
        order = nn.functional.pad(order, (0, self.largest))
        for step, (first, count) in enumerate(self.reveals):
            rows = self.largest if self.static_rows else count
            chosen = order[:, first : first + rows, None]
            z = window.condition(values, mask).gather(1, chosen.expand(-1, -1, width))
            drawn = self._draw_tokens(z, time, noise[step, :, :, :rows])[:, :count]
            values.scatter_(1, chosen[:, :count].expand_as(drawn), drawn)
            mask.scatter_(1, chosen[:, :count, 0], False)
        return values

    def _draw_tokens(self, z: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Draw tokens [B, P, C] by ancestral sampling from z [B, P, D], time [S, E], scaled noise [S + 1, B, P, C]."""
        head = self.model.head
        condition, readout = head.condition(z), head.read(z)
        # [S, 1]: indexing a table with a device scalar would synchronise and break a compiled graph.
        steps = torch.arange(len(time), device=self.device)[:, None]
        x = noise[-1]
        for i in reversed(range(len(time))):
            # Cloned, because the next replay of a CUDA graph overwrites its output.
            x = self.denoise(x, steps[i], condition, time[i], readout, noise[i]).clone()
        return x

    def _denoise(
        self, x: Tensor, i: Tensor, condition: Tensor, time: Tensor, readout: Tensor | None, noise: Tensor
    ) -> Tensor:
        """Run one reverse step x_i -> x_{i-1}, [B, P, C]; i int64 [1]."""
        output = self.model.head.denoise(x, condition + time, readout)
        mean, log_variance = self.process.reverse_step(output, x, i, self.config.sampler.x0_clip)
        return mean + torch.exp(0.5 * log_variance) * noise


class _Window:
    """The finished frames that the next frame sees: tokens, and keys and values in the first slots of the cache."""

    def __init__(self, sampler: Sampler, context: Tensor, frames: int, interval: Tensor, draws: VideoDraws):
        self._sampler, self._interval, self._draws = sampler, interval, draws
        settings, model, trained = sampler.config.sampler, sampler.config.model, sampler.shape.frames
        clips, given, sites, _ = context.shape
        if given > frames:
            raise ConfigError(f'{given} context frames are more than the {frames} frames asked for')
        stretched = settings.long_video == 'interpolate' and frames > trained
        self._slots = frames if stretched else trained
        if frames > self._slots and not 0 < settings.keep_frames < self._slots:
            raise ConfigError(f'sampler.keep_frames = {settings.keep_frames} must lie in 1..{self._slots - 1}')
        positions = torch.linspace(0, trained - 1, frames) if stretched else torch.arange(trained).float()
        self._positions = positions.to(sampler.device)
        sites += model.noise_embedding == 'concat_token'
        self._cache = KVCache(model, clips * sites, self._slots, sampler.dtype, sampler.device)
        kept = range(max(0, given - self._slots), given)
        self._tokens = [self._disturbed(context[:, frame], frame) for frame in kept]
        self._observe(0)

    def make_room(self) -> None:
        """Restart a full window from its last `keep_frames` frames, so positions stay in the trained range."""
        if len(self._tokens) == self._slots:
            self._tokens = self._tokens[-self._sampler.config.sampler.keep_frames :]
            self._observe(0)

    def condition(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the trunk output [B, N, D] for an unfinished frame that follows the window."""
        sampler, slot = self._sampler, self._slot_range(len(self._tokens), len(self._tokens) + 1)
        with autocast(sampler.device, sampler.config.train.compute_dtype):
            return sampler.predict(values, mask, self._interval, self._positions[slot], self._cache, slot)

    def commit(self, tokens: Tensor, frame: int) -> None:
        """Append a finished frame [B, N, C]."""
        self._tokens.append(self._disturbed(tokens, frame))
        self._observe(len(self._tokens) - 1)

    @torch.inference_mode()
    def _observe(self, first: int) -> None:
        """Encode the frames of the window from `first` on into the cache."""
        if first == len(self._tokens):
            return
        sampler, slots = self._sampler, self._slot_range(first, len(self._tokens))
        tokens = torch.stack(self._tokens[first:], dim=1)
        level = torch.full(tokens.shape[:2], sampler.config.sampler.context_level, device=sampler.device)
        with autocast(sampler.device, sampler.config.train.compute_dtype):
            sampler.observe(tokens, level, self._interval, self._positions[slots], self._cache, slots)

    def _disturbed(self, tokens: Tensor, frame: int) -> Tensor:
        """Return clean tokens [B, N, C] with the noise that they get as context (A2)."""
        settings, masking = self._sampler.config.sampler, self._sampler.config.masking
        if not settings.context_noise:
            return tokens
        return tokens + masking.noise_std[settings.context_level] * self._draws.context_noise(frame)

    def _slot_range(self, first: int, end: int) -> Tensor:
        return torch.arange(first, end, device=self._sampler.device)
