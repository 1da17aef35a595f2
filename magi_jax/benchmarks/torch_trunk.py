"""Trunk of the PyTorch reference: MAGI's spatial-temporal transformer, CTF and MTF (arXiv 2501.12389 §4, §A).

Dimension key: B clips, T trained frames, R rows (frames handed in), N tokens of a frame, C token width, D width.
"""

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magi_jax.benchmarks.torch_layers import LAYER_NORM_EPS, Block, KVCache
from magi_jax.config import MagiConfig
from magi_jax.models.clip_shape import ClipShape


class Trunk(nn.Module):
    """Maps tokens and masks to one condition vector for each token, the input of the diffusion head.

    `forward` is the training pass. The sampler calls `observe` and `predict` with a KV cache. Matrix products follow
    the surrounding autocast; the residual stream, norms and positions stay float32.
    """

    def __init__(self, config: MagiConfig, shape: ClipShape):
        super().__init__()
        model, width = config.model, config.model.width
        self.model, self.shape, self.remat = model, shape, config.train.remat == 'block'
        self.complete = model.teacher_forcing == 'complete'
        table = {'position': (shape.tokens, width), 'frame': (width,), 'full': (shape.frames, shape.tokens, width)}
        self.token_projection = nn.Linear(shape.token_width, width)
        if not model.shared_projection:
            self.masked_token_projection = nn.Linear(shape.token_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        if self.complete:
            self.observed_table = nn.Parameter(torch.empty(table[model.frame_table]))
        self.masked_table = nn.Parameter(torch.empty(table[model.frame_table]))
        self.interval_table = nn.Embedding(shape.intervals, width)
        self.noise_table = nn.Embedding(shape.noise_levels, width)
        if model.noise_embedding == 'concat_channel':
            self.noise_projection = nn.Linear(2 * width, width)
        self.input_norm = nn.LayerNorm(width, LAYER_NORM_EPS) if model.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(model, layer) for layer in range(model.blocks))
        self.output_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        head_rows = (shape.frames,) if model.head.position_table == 'per_frame' else ()
        self.head_table = nn.Parameter(torch.empty(*head_rows, shape.tokens, width))
        self.register_buffer('time_positions', sincos_1d(shape.frames, width), persistent=False)
        self.register_buffer('token_positions', sincos_2d(shape.rows, shape.columns, width), persistent=False)
        rows = complete_teacher_forcing(shape.frames) if self.complete else causal(shape.frames)
        self.register_buffer('training_mask', rows, persistent=False)

    def forward(self, observed: Tensor, masked: Tensor, mask: Tensor, interval: Tensor, level: Tensor) -> Tensor:
        """Run the training pass over whole clips. Under CTF every masked frame sees the complete frames before it.

        Args:
          observed: float32 [B, T, N, C] noised tokens of the complete frames; unused under MTF. Nothing sees the last.
          masked: float32 [B, T, N, C] tokens of the frames to predict.
          mask: bool [B, T, N], True = hidden.
          interval: int64 [B] in 1..shape.intervals.
          level: int64 [B, T] noise level of the observed rows (of the masked rows under MTF).

        Returns:
          z float32 [B, T, N, D], meaningful where mask is True.
        """
        frames = self.shape.frames
        positions = torch.arange(frames, dtype=torch.float32, device=masked.device)
        if self.complete:
            before = self._embed(observed[:, :-1], None, interval, level[:, :-1], positions[:-1])
            x = self._embed(masked, mask, interval, torch.zeros_like(level), positions)
            x, conditioning = (None if a is None else torch.cat([a, b], dim=1) for a, b in zip(before, x))
        else:
            x, conditioning = self._embed(masked, mask, interval, level, positions)
        for block in self.blocks:
            if self.remat and torch.is_grad_enabled():
                x = checkpoint(block, x, conditioning, self.training_mask, use_reentrant=False)
            else:
                x = block(x, conditioning, self.training_mask)
        return self._condition(x[:, -frames:], positions)

    def observe(
        self, tokens: Tensor, level: Tensor, interval: Tensor, positions: Tensor, cache: KVCache, slots: Tensor
    ) -> None:
        """Write keys and values of R complete frames to the cache.

        Args:
          tokens: float32 [B, R, N, C].
          level: int64 [B, R].
          interval: int64 [B].
          positions: float32 [R], each in [0, T-1].
          cache: with frames in all slots before these.
          slots: int64 [R], consecutive.
        """
        visible = None if self.complete else torch.zeros(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
        self._cached_pass(*self._embed(tokens, visible, interval, level, positions), cache, slots)

    def predict(
        self, tokens: Tensor, mask: Tensor, interval: Tensor, position: Tensor, cache: KVCache, slot: Tensor
    ) -> Tensor:
        """Compute the condition vectors for the hidden tokens of one new frame.

        The frame writes its own keys and values to `slot` of the cache.

        Args:
          tokens: float32 [B, N, C], revealed where mask is False.
          mask: bool [B, N].
          interval: int64 [B].
          position: float32 [1] in [0, T-1].
          cache: with frames in all slots before this one.
          slot: int64 [1].

        Returns:
          z float32 [B, N, D].
        """
        level = torch.zeros(len(tokens), 1, dtype=torch.long, device=tokens.device)
        x, conditioning = self._embed(tokens[:, None], mask[:, None], interval, level, position)
        return self._condition(self._cached_pass(x, conditioning, cache, slot), position)[:, 0]

    def _cached_pass(self, x: Tensor, conditioning: Tensor | None, cache: KVCache, slots: Tensor) -> Tensor:
        mask = cache.mask(slots)
        for block in self.blocks:
            x = block(x, conditioning, mask, cache, slots)
        return x

    def _embed(
        self, tokens: Tensor, mask: Tensor | None, interval: Tensor, level: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Embed tokens [B, R, N, C] of observed (mask None) or masked frames as x [B, R, N', D].

        The second result is the conditioning of every block (A11) or None. N' = N + 1 if the noise level is a token
        (A3, 'concat_token'), else N.
        """
        if mask is None:
            x, table = self.token_projection(tokens), self.observed_table
        else:
            project = self.token_projection if self.model.shared_projection else self.masked_token_projection
            x, table = torch.where(mask[..., None], self.mask_token, project(tokens)), self.masked_table
        if self.model.frame_table == 'full':
            table = read_table(table, positions)
        time = read_table(self.time_positions, positions)[None, :, None]
        time_and_interval = time + self.interval_table(interval - 1)[:, None, None]
        x = x + self.token_positions + table + time_and_interval
        noise = self.noise_table(level)[:, :, None]
        if self.model.noise_embedding == 'add':
            x = x + noise
        elif self.model.noise_embedding == 'concat_token':
            x = torch.cat([x, noise], dim=2)
        else:
            x = self.noise_projection(torch.cat([x, noise.expand_as(x)], dim=-1)).float()
        return self.input_norm(x), (time_and_interval if self.model.embed_at == 'every_block' else None)

    def _condition(self, x: Tensor, positions: Tensor) -> Tensor:
        """Normalise the trunk output [B, R, N', D] and add the position table of the head (MAR): z [B, R, N, D]."""
        table = self.head_table
        if self.model.head.position_table == 'per_frame':
            table = read_table(table, positions)
        return self.output_norm(x[:, :, : self.shape.tokens]) + table


def sincos_1d(length: int, width: int) -> Tensor:
    """Return float32 [length, width]: sines then cosines of position / 10000^(2k/width), k < width/2 (MAGI §4, MAR)."""
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos_2d(height: int, width: int, channels: int) -> Tensor:
    """Return float32 [height * width, channels]: half of the channels for rows, half for columns."""
    rows = repeat(sincos_1d(height, channels // 2), 'h d -> (h w) d', w=width)
    columns = repeat(sincos_1d(width, channels // 2), 'w d -> (h w) d', h=height)
    return torch.cat([rows, columns], dim=1)


def read_table(table: Tensor, positions: Tensor) -> Tensor:
    """Read rows [R, ...] of `table` [T, ...] at real `positions` [R] in [0, T-1], interpolated linearly."""
    low = positions.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    weight = (positions - low).view(-1, *[1] * (table.ndim - 1))
    return torch.lerp(table[low], table[high], weight)


def causal(frames: int) -> Tensor:
    """Return bool [T, T]: a frame sees itself and the frames before it (masked teacher forcing)."""
    return torch.ones(frames, frames, dtype=torch.bool).tril()


def complete_teacher_forcing(frames: int) -> Tensor:
    """Return bool [2T-1, 2T-1]: T-1 causal observed frames, then T masked frames j that see observed frames < j.

    A masked frame also sees itself. The last frame is not observed, because only a later frame would see it.
    """
    observed = torch.cat([causal(frames)[1:, 1:], torch.zeros(frames - 1, frames, dtype=torch.bool)], dim=1)
    masked = torch.cat([causal(frames).tril(-1)[:, :-1], torch.eye(frames, dtype=torch.bool)], dim=1)
    return torch.cat([observed, masked])
