"""The PyTorch reference's trunk layers: blocks of one spatial and one temporal pre-LN transformer layer (MAGI §A.1).

Dimension key: B clips, R rows (frames handed in), N sites (tokens of a frame), W cache slots, D width, H heads,
d head width, S sequences attended over at once.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magi_jax.config import MagiModelConfig

LAYER_NORM_EPS = 1e-6


class KVCache(nn.Module):
    """Preallocated keys and values [L, B * N, H, W, d] of the temporal layers, written in place.

    The caller knows which slots hold frames. A pass writes its rows to the given slots and sees all slots up to them,
    so an unfinished frame may be written repeatedly. The arrays are module buffers, because `torch.compile` then treats
    their addresses as static.
    """

    def __init__(self, config: MagiModelConfig, sequences: int, slots: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        shape = (config.blocks, sequences, config.heads, slots, config.width // config.heads)
        self.register_buffer('k', torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer('v', torch.zeros(shape, dtype=dtype, device=device))

    def update(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B * N, H, R, d] of a layer to `slots` int64 [R]; return all W slots of that layer."""
        keys, values = self.k[layer], self.v[layer]
        keys.index_copy_(2, slots, k)
        values.index_copy_(2, slots, v)
        return keys, values

    def mask(self, slots: Tensor) -> Tensor:
        """Return bool [R, W]: new rows in `slots` int64 [R] see every slot up to their own."""
        return torch.arange(self.k.shape[3], device=slots.device)[None] <= slots[:, None]


class Attention(nn.Module):
    """Multi-head self-attention along the second axis of [S, R, D]."""

    def __init__(self, config: MagiModelConfig):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Attend over x [S, R, D] with `mask` bool [R, keys]; cache, layer and slots as in `KVCache`.

        Return [S, R, D].
        """
        q, k, v = rearrange(self.qkv(x), 's r (three h d) -> three s h r d', three=3, h=self.heads)
        if cache is not None:
            k, v = cache.update(layer, slots, k, v)
        rate = self.rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.dropout(self.out(rearrange(x, 's h r d -> s r (h d)')))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after each."""

    def __init__(self, config: MagiModelConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))


class Block(nn.Module):
    """One spatial and one temporal layer, each x += Attn(LN(x)); x += MLP(LN(x)) (A10 may drop the spatial MLP)."""

    def __init__(self, config: MagiModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.spatial_norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        self.spatial_attention = Attention(config)
        self.has_spatial_mlp = config.mlp_layers == 'both'
        if self.has_spatial_mlp:
            self.spatial_mlp_norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
            self.spatial_mlp = Mlp(config)
        self.temporal_norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        self.temporal_attention = Attention(config)
        self.temporal_mlp_norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        self.temporal_mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        conditioning: Tensor | None,
        mask: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Map x [B, R, N, D] to the same shape; conditioning [B, R, 1, D] | None (A11), mask bool [R, R or W].

        With a cache, the temporal layer writes the R rows to `slots` int64 [R] and attends over all slots up to them.
        """
        if conditioning is not None:
            x = x + conditioning
        clips, rows = x.shape[:2]
        x = rearrange(x, 'b r n d -> (b r) n d')
        x = x + self.spatial_attention(self.spatial_norm(x))
        if self.has_spatial_mlp:
            x = x + self.spatial_mlp(self.spatial_mlp_norm(x))
        x = rearrange(x, '(b r) n d -> (b n) r d', b=clips, r=rows)
        x = x + self.temporal_attention(self.temporal_norm(x), mask, cache, self.layer, slots)
        x = x + self.temporal_mlp(self.temporal_mlp_norm(x))
        return rearrange(x, '(b n) r d -> b r n d', b=clips)
