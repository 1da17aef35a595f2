"""Layers of OmniTokenizer's transformers, including the peculiarities that its weights were trained with.

Queries come from normalised tokens; keys and values come from the tokens before the norm. In temporal transformers the
positional convolution reads tokens in the order (site, frame) as if it were (frame, site). So it mixes distant frames
and sites, past and future.

Dimension key: B clips, t frames, h w rows and columns of tokens, G sequences of N tokens (frames of N = h w sites, or
sites of N = t frames), D width, H heads, d head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange

HEADS = 8
WINDOW = 8  # side of a window in tokens
LOGIT_SCALE = 8.0


class Norm(nn.Module):
    """Layer norm in float32, with the parameter names of the published weights."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param('gamma', nn.initializers.ones, x.shape[-1:])
        beta = self.param('beta', nn.initializers.zeros, x.shape[-1:])
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_bias=False, use_scale=False, dtype=jnp.float32)
        axes = tuple(range(x.ndim - 1))
        return norm(x) * jnp.expand_dims(gamma, axes) + jnp.expand_dims(beta, axes)


class PositionConv(nn.Module):
    """Depthwise 3x3x3 convolution over [B, t, h, w, D], causal in its first axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((2, 0), (1, 1), (1, 1))
        width = x.shape[-1]
        return nn.Conv(width, (3, 3, 3), padding=padding, feature_group_count=width, name='dsconv')(x)


class Attention(nn.Module):
    """Cosine attention over [G, N, D]: in space with rotations by row and column, in time causal."""

    in_time: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, tokens = x.shape[-1], x.shape[1]
        q = nn.Dense(width, use_bias=False, dtype=self.dtype, name='to_q')(Norm(name='norm')(x))
        k, v = jnp.split(nn.Dense(2 * width, use_bias=False, dtype=self.dtype, name='to_kv')(x), 2, axis=-1)
        q, k, v = (rearrange(y, 'G N (H d) -> G H N d', H=HEADS) for y in (q, k, v))
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        if not self.in_time:
            q, k = (rotate(y) for y in (q, k))
        q, k = (self._unit(y, name) for y, name in ((q, 'q_scale'), (k, 'k_scale')))
        scores = einsum(q, k, 'G H q d, G H k d -> G H q k') * LOGIT_SCALE
        if self.in_time:
            past = jnp.tril(jnp.ones((tokens, tokens), bool))
            scores = jnp.where(jnp.expand_dims(past, (0, 1)), scores, -jnp.inf)
        y = einsum(nn.softmax(scores).astype(self.dtype), v, 'G H q k, G H k d -> G H q d')
        y = rearrange(y, 'G H N d -> G N (H d)')
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name='to_out')(y)

    def _unit(self, x: jax.Array, name: str) -> jax.Array:
        scale = self.param(name, nn.initializers.ones, x.shape[-1:])
        length = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.maximum(length, 1e-12) * jnp.expand_dims(scale, (0, 1, 2))


class WindowAttention(nn.Module):
    """Attention inside windows of a square frame, [G, N, D], with a learned bias by relative position."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, side = x.shape[-1], round(x.shape[1] ** 0.5)
        window = {'p': WINDOW, 'q': WINDOW}
        x = rearrange(Norm(name='norm')(x), 'G (h p w q) D -> (G h w) (p q) D', h=side // WINDOW, **window)
        q, k, v = rearrange(
            nn.Dense(3 * width, use_bias=False, dtype=self.dtype, name='qkv')(x),
            'G N (s H d) -> s G H N d',
            s=3,
            H=HEADS,
        )
        places = (2 * WINDOW - 1) ** 2
        table = self.param('relative_position_bias_table', nn.initializers.zeros, (places, HEADS))
        bias = rearrange(table[relative_places()], 'q k H -> 1 H q k')
        scores = einsum(q * q.shape[-1] ** -0.5, k, 'G H q d, G H k d -> G H q k').astype(jnp.float32) + bias
        y = einsum(nn.softmax(scores).astype(self.dtype), v, 'G H q k, G H k d -> G H q d')
        y = nn.Dense(width, dtype=self.dtype, name='proj')(rearrange(y, 'G H N d -> G N (H d)'))
        h = side // WINDOW
        return rearrange(y, '(G h w) (p q) D -> G (h p w q) D', h=h, w=h, **window)


class Transformer(nn.Module):
    """Maps [B, t, h, w, D] to the same shape by attention in space or in time.

    Letters name its layers: t tokens, w windows.
    """

    layers: str
    in_time: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        grid = dict(zip('Bthw', x.shape))
        forth, back = ('B t h w D', '(B h w) t D') if self.in_time else ('B t h w D', '(B t) (h w) D')
        x = rearrange(x, f'{forth} -> {back}')
        for i, letter in enumerate(self.layers):
            if letter == 't':
                grids = x.reshape(*grid.values(), x.shape[-1])  # in time: the mixed order described above
                x = x + PositionConv(name=f'layers_{i}_0')(grids).reshape(x.shape)
                x = x + Attention(self.in_time, self.dtype, name=f'layers_{i}_1')(x)
            else:
                x = x + WindowAttention(self.dtype, name=f'layers_{i}_1')(x)
            y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=f'layers_{i}_3_0')(x)
            inner = int(4 * (2 / 3) * x.shape[-1])
            y = nn.Dense(2 * inner, use_bias=False, dtype=self.dtype, name=f'layers_{i}_3_1')(y)
            value, gate = jnp.split(y, 2, axis=-1)
            y = nn.gelu(gate, approximate=False) * value
            x = x + nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=f'layers_{i}_3_4')(y)
        return rearrange(Norm(name='norm_out')(x), f'{back} -> {forth}', **grid)


def rotate(x: jax.Array) -> jax.Array:
    """Rotate channel pairs of [G, H, N, d], N the sites of a square frame, by column and row in turn."""
    tokens, width = x.shape[2:]
    index, side = np.arange(tokens), round(tokens**0.5)
    frequencies = 10_000.0 ** (-np.arange(0, width, 4) / width)
    places = np.stack([index % side, index // side], -1)
    angles = rearrange(np.einsum('nc,f->nfc', places, frequencies), 'n f c -> 1 1 n (f c)')
    cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return rearrange(jnp.stack([a * cos - b * sin, a * sin + b * cos]), 's G H N d -> G H N (d s)')


def relative_places() -> np.ndarray:
    """Return int [N, N]: the row of the bias table for each pair of tokens in a window."""
    rows, columns = np.divmod(np.arange(WINDOW**2), WINDOW)
    down, right = (np.subtract.outer(x, x) + WINDOW - 1 for x in (rows, columns))
    return down * (2 * WINDOW - 1) + right
