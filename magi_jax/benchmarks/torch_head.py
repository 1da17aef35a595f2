"""The PyTorch reference's diffusion head: MAR's adaptive-LayerNorm MLP that denoises one token.

Dimension key: ... token rows, C token width, D trunk width, E head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magi_jax.benchmarks.torch_layers import LAYER_NORM_EPS
from magi_jax.config import HeadConfig

TIMESTEP_CHANNELS = 256


def timestep_embedding(t: Tensor) -> Tensor:
    """Embed timesteps int64 [...] as float32 [..., 256]: cosines then sines of t / 10000^(k/128)."""
    half = TIMESTEP_CHANNELS // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """x += gate * MLP(LN(x) * (1 + scale) + shift). The condition modulates it; an untrained block is the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Apply the block to x [..., E] with `activated`, the silu of the condition [..., E]."""
        shift, scale, gate = self.modulation(activated).chunk(3, dim=-1)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.down(F.silu(self.up(h)))


class DiffusionHead(nn.Module):
    """Maps noisy token, timestep and trunk output to (prediction | variance logits).

    The condition is the sum of a term of the timestep and a term of the trunk output. The sampler computes the first
    once for all tokens and the second once for all timesteps, then calls `denoise`. Training calls the module.
    """

    def __init__(self, config: HeadConfig, token_width: int, trunk_width: int):
        super().__init__()
        width = config.width
        self.time_in = nn.Linear(TIMESTEP_CHANNELS, width)
        self.time_out = nn.Linear(width, width)
        self.condition = nn.Linear(trunk_width, width)
        self.token_in = nn.Linear(token_width, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.blocks))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_norm = nn.LayerNorm(width, LAYER_NORM_EPS, elementwise_affine=False)
        self.final = nn.Linear(width, 2 * token_width)
        self.readout = nn.Linear(trunk_width, token_width) if config.readout else None

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Map x [..., C], t int64 [...], z [..., D] (broadcast against x) to float32 [..., 2C]."""
        return self.denoise(x, self.embed_time(t) + self.condition(z), self.read(z))

    def embed_time(self, t: Tensor) -> Tensor:
        """Map timesteps int64 [...] to their term of the condition [..., E]."""
        return self.time_out(F.silu(self.time_in(timestep_embedding(t))))

    def read(self, z: Tensor) -> Tensor | None:
        """Map z [..., D] to a term of the prediction [..., C]; None without `readout`."""
        return None if self.readout is None else self.readout(z)

    def denoise(self, x: Tensor, condition: Tensor, readout: Tensor | None) -> Tensor:
        """Map x [..., C], condition [..., E] and the result of `read` to float32 [..., 2C]."""
        activated = F.silu(condition)
        h = self.token_in(x)
        for block in self.blocks:
            h = block(h, activated)
        shift, scale = self.final_modulation(activated).chunk(2, dim=-1)
        output = self.final(self.final_norm(h) * (1 + scale) + shift)
        if readout is not None:
            prediction, logits = output.chunk(2, dim=-1)
            output = torch.cat([prediction + readout, logits], dim=-1)
        return output.float()
