"""Layers of the Cosmos video tokenizer: separate convolutions in space and time, causal in time.

Modules are named as in diffusers' AutoencoderKLCosmos, with `_` for `.` before an index; convert/ relies on the names.

Dimension key: B clips, T frames, H W rows and columns of any level, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import einsum, rearrange, reduce, repeat


def space_conv(x: jax.Array, width: int, dtype: jnp.dtype, name: str) -> jax.Array:
    """Apply a 3x3 convolution to each frame, with zero padding."""
    return nn.Conv(width, (1, 3, 3), padding=((0, 0), (1, 1), (1, 1)), dtype=dtype, name=name)(x)


def time_conv(x: jax.Array, dtype: jnp.dtype, name: str, stride: int = 1) -> jax.Array:
    """Apply a convolution over a frame and the two before it; the first frame is repeated as padding."""
    before = repeat(x[:, :1], 'B 1 H W D -> B t H W D', t=3 - stride)
    x = jnp.concatenate([before, x], axis=1)
    return nn.Conv(x.shape[-1], (3, 1, 1), (stride, 1, 1), padding='VALID', dtype=dtype, name=name)(x)


class FrameNorm(nn.Module):
    """Normalises each frame by its own mean and variance over all values, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        frames = rearrange(x, 'B T H W D -> (B T) H W D')
        norm = nn.GroupNorm(1, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, name='norm')
        return rearrange(norm(frames), '(B T) H W D -> B T H W D', B=x.shape[0])


class Projection(nn.Module):
    """Maps [..., D'] to [..., D]: a 3x3 convolution in space, then one of size 3 in time."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return time_conv(space_conv(x, self.width, self.dtype, 'conv_s'), self.dtype, 'conv_t')


class ResidualBlock(nn.Module):
    """Maps [..., D'] to [..., D]: twice norm, SiLU, projection, plus the (linearly mapped) input."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Projection(self.width, self.dtype, name='conv1')(nn.silu(FrameNorm(name='norm1')(x)))
        y = Projection(self.width, self.dtype, name='conv2')(nn.silu(FrameNorm(name='norm2')(y)))
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name='conv_shortcut')(x)
        return x + y


class Attention(nn.Module):
    """Adds one head of attention, inside each frame or causally along the frames of each site."""

    in_time: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, (frames, rows) = x.shape[-1], x.shape[1:3]
        y = FrameNorm(name='norm')(x)
        q, k, v = (nn.Dense(width, dtype=self.dtype, name=name)(y) for name in ('to_q', 'to_k', 'to_v'))
        pattern = 'B T H W D -> B (H W) T D' if self.in_time else 'B T H W D -> B T (H W) D'
        q, k, v = (rearrange(y, pattern) for y in (q, k, v))
        scores = einsum(q, k, 'B r q D, B r k D -> B r q k').astype(jnp.float32) * width**-0.5
        if self.in_time:
            past = jnp.tril(jnp.ones((frames, frames), bool))
            scores = jnp.where(jnp.expand_dims(past, (0, 1)), scores, -jnp.inf)
        y = einsum(nn.softmax(scores).astype(self.dtype), v, 'B r q k, B r k D -> B r q D')
        back = 'B (H W) T D -> B T H W D' if self.in_time else 'B T (H W) D -> B T H W D'
        return x + nn.Dense(width, dtype=self.dtype, name='to_out_0')(rearrange(y, back, H=rows))


class MidBlock(nn.Module):
    """Residual block, spatial attention, temporal attention, residual block."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResidualBlock(x.shape[-1], self.dtype, name='resnets_0')(x)
        x = Attention(False, self.dtype, name='attentions_0')(x)
        x = Attention(True, self.dtype, name='temp_attentions_0')(x)
        return ResidualBlock(x.shape[-1], self.dtype, name='resnets_1')(x)


class Downsample(nn.Module):
    """Halves space, and time from T = 1 + 2n to 1 + n if `time`: a strided convolution plus a mean."""

    time: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, padding = x.shape[-1], ((0, 0), (0, 1), (0, 1))
        strided = nn.Conv(width, (1, 3, 3), (1, 2, 2), padding=padding, dtype=self.dtype, name='conv1')(x)
        x = strided + reduce(x, 'B T (H i) (W j) D -> B T H W D', 'mean', i=2, j=2)
        if self.time:
            x = jnp.concatenate([x[:, :1], x], axis=1)
            strided = time_conv(x, self.dtype, 'conv2', stride=2)
            x = strided + reduce(x, 'B (T i) H W D -> B T H W D', 'mean', i=2)
        return nn.Dense(width, dtype=self.dtype, name='conv3')(x)


class Upsample(nn.Module):
    """Doubles space, and time from T = 1 + n to 1 + 2n if `time`: repeated values plus a convolution of them."""

    time: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.time:
            if x.shape[1] > 1:
                x = repeat(x, 'B T H W D -> B (T i) H W D', i=2)[:, 1:]
            x = x + time_conv(x, self.dtype, 'conv1')
        x = repeat(x, 'B T H W D -> B T (H i) (W j) D', i=2, j=2)
        x = x + space_conv(x, x.shape[-1], self.dtype, 'conv2')
        return nn.Dense(x.shape[-1], dtype=self.dtype, name='conv3')(x)
