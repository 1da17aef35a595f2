"""Dropout whose draws belong to a clip's tokens, not to places in an array: the same on any mesh and in any batch.

A draw is a hash of (clip and step, layer, purpose, row, site, feature). XLA computes it inside the operation that uses
it: draws are never in memory, ask for no layout of their own, and the backward pass makes them again.

Dimension key: B clips, R rows (frames) of the whole sequence, F features; r, n: rows and sites that this device holds.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Words = tuple[Array, Array]
Draws = tuple[Words, Array]  # of tokens, and numbers of their features: each broadcast over what is dropped

# Multiplications and shifts of `lowbias32`, an integer hash found by search (C. Wellons, hash-prospector, 2018); the
# odd increments are 2^32 / golden ratio and MurmurHash3's first multiplier.
_MULTIPLIERS = np.uint32([0x7FEB352D, 0x846CA68B])
_INCREMENTS = np.uint32([0x9E3779B9, 0xCC9E2D51])


@flax.struct.dataclass
class ClipDropout:
    """What a training pass draws from.

    Attributes:
      keys: [B] typed keys of this step, one a clip.
      rows: int32 [R] number of each row of the sequence, in 0..numbers-1; it stands for the row wherever the row lies.
      numbers: how many row numbers there are.
      rate: probability of a zero, in [0, 1).
    """

    keys: Array
    rows: Array
    numbers: int = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    def tokens(self, layer: Array, rows: Array, sites: Array) -> 'TokenDropout':
        """The draws of a layer for the tokens at row numbers `rows` [r] and `sites` [n]."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, layer)
        tokens = sites.astype(jnp.uint32)[None] * self.numbers + rows.astype(jnp.uint32)[:, None]
        return TokenDropout(keys, tokens, self.rows, self.numbers, self.rate)


@flax.struct.dataclass
class TokenDropout:
    """`ClipDropout` for one layer's tokens: `keys` [B] are the layer's, `tokens` uint32 [r, n] number the tokens."""

    keys: Array
    tokens: Array
    rows: Array
    numbers: int = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    def words(self, purpose: int) -> Words:
        """64 random bits a token, as two uint32 [B, r, n]; `purpose` tells apart the draws of one layer."""

        def seeds(key: Array) -> Array:
            return jax.random.bits(jax.random.fold_in(key, purpose), (2,), jnp.uint32)

        first, second = (seed[:, None, None] for seed in jax.vmap(seeds, out_axes=1)(self.keys))
        tokens = self.tokens[None]
        return _hash(first + tokens * _INCREMENTS[0]), _hash(second + tokens * _INCREMENTS[1])

    def draws(self, purpose: int, features: Array) -> Draws:
        """Draws for [B, r, n, F], from the numbers of its features [F]."""
        return tuple(word[..., None] for word in self.words(purpose)), jnp.expand_dims(features, (0, 1, 2))


def factors(draws: Draws, rate: float) -> Array:
    """float32: 0 with probability `rate`, else 1 / (1 - rate)."""
    (first, second), features = draws
    hashes = _hash(first + features.astype(jnp.uint32) * _INCREMENTS[0], second)
    # Not jnp.where: of its constants a scan makes arrays as large as the draws, which a GPU then reads from memory.
    return (hashes >= np.uint32(round(rate * 2**32))).astype(jnp.float32) * (1 / (1 - rate))


def drop(x: Array, dropout: TokenDropout | None, purpose: int) -> Array:
    """x [B, r, n, F] with some values zero and the others scaled up; unchanged without `dropout`."""
    if dropout is None:
        return x
    return _drop(x, dropout.draws(purpose, jnp.arange(x.shape[-1])), dropout.rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Array, draws: Draws, rate: float) -> Array:
    return (x.astype(jnp.float32) * factors(draws, rate)).astype(x.dtype)


def _drop_forward(x: Array, draws: Draws, rate: float) -> tuple[Array, Draws]:
    return _drop(x, draws, rate), draws


def _drop_backward(rate: float, draws: Draws, gradient: Array) -> tuple[Array, None]:
    return _drop(gradient, draws, rate), None


_drop.defvjp(_drop_forward, _drop_backward)


def dropped_gelu(x: Array, draws: Draws, rate: float) -> Array:
    """Exact GELU, then dropout, in one: a TPU makes it, and the slope, while it writes the product that is x.

    For the backward pass only the slope is kept, in x's dtype, with the draws in it.
    """
    return _dropped_gelu(x, factors(draws, rate))


@jax.custom_vjp
def _dropped_gelu(x: Array, factor: Array) -> Array:
    return _gelu_forward(x, factor)[0]


def _gelu_forward(x: Array, factor: Array) -> tuple[Array, Array]:
    """x Phi(x) with the normal distribution Phi, and its slope Phi(x) + x phi(x), both times `factor`."""
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    slope = below + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (wide * below * factor).astype(x.dtype), (slope * factor).astype(x.dtype)


def _gelu_backward(slope: Array, gradient: Array) -> tuple[Array, None]:
    return gradient * slope, None


_dropped_gelu.defvjp(_gelu_forward, _gelu_backward)


def _hash(x: Array, key: Array | None = None) -> Array:
    """uint32 -> uint32, a bijection of every key in which each bit of the input flips about half of the output's."""
    x = (x ^ (x >> 16)) * _MULTIPLIERS[0]
    x = x if key is None else x ^ key
    x = (x ^ (x >> 15)) * _MULTIPLIERS[1]
    return x ^ (x >> 16)
