"""Attention with dropout on its weights and a hand-written gradient.

The backward pass keeps only the logarithm of the softmax denominator (Dao et al. 2022, arXiv 2205.14135). With it a
weight is one exponential of its score, which the compiler fuses with the product that computes the score. XLA does not
fuse them on a GPU; there `layers/fused_attention.py` provides kernels.

Dimension key: B clips, G sequences of a clip, S tokens of a sequence, H heads, d head width.
"""

import functools
import math

import einops
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from magi_jax.layers import fused_attention
from magi_jax.layers.dropout import FeatureBits, keep_factors
from magi_jax.layers.site_tiles import SUBLANES

Array = jax.Array

DENOMINATOR, OUTPUT = 'denominator', 'attention'  # checkpoint names of values kept for the backward pass


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def self_attention(
    q: Array, k: Array, v: Array, mask: Array | None, draws: FeatureBits | None, rate: float, fused: bool = False
) -> Array:
    """Compute softmax(q k / sqrt(d)) v, with the softmax in float32.

    Args:
      q: queries [B, G, S, H, d].
      k: keys, same shape.
      v: values, same shape.
      mask: bool [S, S] or [B, S, S] of allowed (query, key) pairs, at least one for each query; None allows all.
      draws: random bits for dropout on the weights [B, G, H, S, S]; None = no dropout.
      rate: dropout rate in [0, 1).
      fused: use the fused GPU kernels.

    Returns:
      [B, G, S, H, d].
    """
    return _forward(q, k, v, mask, draws, rate, fused)[0]


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    scores = _pairs(q, k) * q.shape[-1] ** -0.5
    if mask is None:
        return scores
    return jnp.where(mask.reshape(-1, 1, 1, *mask.shape[-2:]), scores, jnp.finfo(jnp.float32).min)


def _pairs(queries: Array, keys: Array) -> Array:
    return jnp.einsum('bgqhd,bgkhd->bghqk', queries, keys, preferred_element_type=jnp.float32)


def _factors(draws: FeatureBits | None, rate: float) -> Array | float:
    return 1.0 if draws is None else keep_factors(draws, rate)


def _forward(
    q: Array, k: Array, v: Array, mask: Array | None, draws: FeatureBits | None, rate: float, fused: bool
) -> tuple[Array, tuple[Array | FeatureBits | None, ...]]:
    if fused:
        out, denominator = fused_attention.forward(fused_attention.Inputs(q, k, v, mask, draws, rate))
        denominator = checkpoint_name(denominator, DENOMINATOR)
    else:
        scores = _scores(q, k, mask)
        denominator = checkpoint_name(jax.nn.logsumexp(scores, axis=-1), DENOMINATOR)
        weights = jnp.exp(scores - denominator[..., None]) * _factors(draws, rate)
        out = jnp.einsum('bghqk,bgkhd->bgqhd', weights.astype(v.dtype), v)
    if fused or mask is None:  # masked (temporal) sequences are so short that recomputing is faster than reading
        out = checkpoint_name(out, OUTPUT)
    return out, (q, k, v, mask, draws, denominator, out)


def _backward(
    rate: float, fused: bool, kept: tuple[Array | FeatureBits | None, ...], gradient: Array
) -> tuple[Array | None, ...]:
    q, k, v, mask, draws, denominator, out = kept
    # The softmax gradient subtracts the weighted mean over keys, which equals sum_d(output * its gradient).
    mean = jnp.einsum('bgqhd,bgqhd->bghq', gradient, out, preferred_element_type=jnp.float32)
    if fused:
        inputs = fused_attention.Inputs(q, k, v, mask, draws, rate)
        return *fused_attention.backward(inputs, denominator, mean, gradient), None, None
    weights, factor = jnp.exp(_scores(q, k, mask) - denominator[..., None]), _factors(draws, rate)
    dv = jnp.einsum('bghqk,bgqhd->bgkhd', (weights * factor).astype(v.dtype), gradient)
    of_scores = (weights * (_pairs(gradient, v) * factor - mean[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = jnp.einsum('bghqk,bgkhd->bgqhd', of_scores, k)
    dk = jnp.einsum('bghqk,bgqhd->bgkhd', of_scores, q)
    return dq, dk, dv, None, None


self_attention.defvjp(_forward, _backward)


@jax.custom_vjp
def with_gradient_for_weights(x: Array) -> Array:
    """Return x unchanged; in the backward pass, copy its gradient once into the layout that the weight gradient reads.

    x is q, k or v [B, G, S, H d] before its bias. Attention returns the gradient with S on the lanes of a TPU, sequence
    after sequence. The product over all tokens reads tiles of 8 features and 128 tokens. With a plain reshape the
    compiler would copy the gradient twice.
    """
    return x


def _gradient_for_weights(_: None, gradient: Array) -> tuple[Array]:
    sublanes = math.gcd(gradient.shape[-1], SUBLANES)
    registers = einops.rearrange(gradient, 'b g s (e l) -> e b g l s', l=sublanes)
    registers = jax.lax.optimization_barrier(registers)  # without it the compiler cancels the copies
    return (einops.rearrange(registers, 'e b g l s -> b g s (e l)'),)


with_gradient_for_weights.defvjp(lambda x: (x, None), _gradient_for_weights)
