"""Dropout whose random bits depend on clip and token, not on array positions: the same on any mesh and in any batch.

The bits are a hash of (clip and step, layer, purpose, row, site, feature). XLA fuses the hash into the operation that
uses it. So the bits are never stored, need no sharding, and the backward pass computes them again.

Dimension key: B clips, R rows (frames) of the whole sequence, F features; r, n: local rows and sites of one device.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
RandomBits = tuple[Array, Array]
FeatureBits = tuple[
    RandomBits, Array
]  # token bits and feature numbers; both broadcast to the shape that dropout applies to

# Multiplications and shifts of `lowbias32`, an integer hash found by search (C. Wellons, hash-prospector, 2018); the
# odd increments are 2^32 / golden ratio and MurmurHash3's first multiplier.
_MULTIPLIERS = np.uint32([0x7FEB352D, 0x846CA68B])
_INCREMENTS = np.uint32([0x9E3779B9, 0xCC9E2D51])


@flax.struct.dataclass
class ClipDropout:
    """Keys and numbering of one training pass.

    Attributes:
      keys: [B] typed keys of this step, one for each clip.
      rows: int32 [R], the number of each row in 0..numbers-1. It identifies a row whatever the order of rows.
      numbers: count of row numbers.
      rate: probability of a zero, in [0, 1).
    """

    keys: Array
    rows: Array
    numbers: int = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    def tokens(self, layer: Array, rows: Array, sites: Array) -> 'TokenDropout':
        """Return the dropout of one layer for the tokens at row numbers `rows` [r] and `sites` [n]."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, layer)
        tokens = sites.astype(jnp.uint32)[None] * self.numbers + rows.astype(jnp.uint32)[:, None]
        return TokenDropout(keys, tokens, self.rows, self.numbers, self.rate)


@flax.struct.dataclass
class TokenDropout:
    """`ClipDropout` of one layer: `keys` [B] of the layer, and token numbers `tokens` uint32 [r, n]."""

    keys: Array
    tokens: Array
    rows: Array
    numbers: int = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    def random_bits(self, purpose: int) -> RandomBits:
        """Return 64 random bits for each token as two uint32 [B, r, n].

        Each use of dropout in a layer has its own `purpose`.
        """

        def seeds(key: Array) -> Array:
            return jax.random.bits(jax.random.fold_in(key, purpose), (2,), jnp.uint32)

        first, second = (seed[:, None, None] for seed in jax.vmap(seeds, out_axes=1)(self.keys))
        tokens = self.tokens[None]
        return _hash(first + tokens * _INCREMENTS[0]), _hash(second + tokens * _INCREMENTS[1])

    def feature_bits(self, purpose: int, features: Array) -> FeatureBits:
        """Return the bits for an array [B, r, n, F] whose features have the numbers `features` [F]."""
        return tuple(word[..., None] for word in self.random_bits(purpose)), jnp.expand_dims(features, (0, 1, 2))


def keep_factors(bits: FeatureBits, rate: float) -> Array:
    """Return float32 factors: 0 with probability `rate`, else 1 / (1 - rate)."""
    (first, second), features = bits
    hashes = _hash(first + features.astype(jnp.uint32) * _INCREMENTS[0], second)
    # Not jnp.where: a scan would turn its two constants into full arrays, which a GPU then reads from memory.
    return (hashes >= np.uint32(round(rate * 2**32))).astype(jnp.float32) * (1 / (1 - rate))


def drop(x: Array, dropout: TokenDropout | None, purpose: int) -> Array:
    """Apply dropout to x [B, r, n, F]. Return x unchanged if `dropout` is None."""
    if dropout is None:
        return x
    return _drop(x, dropout.feature_bits(purpose, jnp.arange(x.shape[-1])), dropout.rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Array, draws: FeatureBits, rate: float) -> Array:
    return (x.astype(jnp.float32) * keep_factors(draws, rate)).astype(x.dtype)


def _drop_forward(x: Array, draws: FeatureBits, rate: float) -> tuple[Array, FeatureBits]:
    return _drop(x, draws, rate), draws


def _drop_backward(rate: float, draws: FeatureBits, gradient: Array) -> tuple[Array, None]:
    return _drop(gradient, draws, rate), None


_drop.defvjp(_drop_forward, _drop_backward)


def dropped_gelu(x: Array, draws: FeatureBits, rate: float) -> Array:
    """Apply exact GELU and dropout as one operation, which a TPU fuses with the matrix product that computes x.

    The backward pass keeps only the slope, dropout included, in the dtype of x.
    """
    return _dropped_gelu(x, keep_factors(draws, rate))


@jax.custom_vjp
def _dropped_gelu(x: Array, factor: Array) -> Array:
    return _gelu_forward(x, factor)[0]


def _gelu_forward(x: Array, factor: Array) -> tuple[Array, Array]:
    """Return x Phi(x) and its slope Phi(x) + x phi(x), both times `factor`. Phi is the normal distribution function."""
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    slope = below + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (wide * below * factor).astype(x.dtype), (slope * factor).astype(x.dtype)


def _gelu_backward(slope: Array, gradient: Array) -> tuple[Array, None]:
    return gradient * slope, None


_dropped_gelu.defvjp(_gelu_forward, _gelu_backward)


def _hash(x: Array, key: Array | None = None) -> Array:
    """Hash uint32 to uint32.

    It is a bijection for every key, and each input bit flips about half of the output bits.
    """
    x = (x ^ (x >> 16)) * _MULTIPLIERS[0]
    x = x if key is None else x ^ key
    x = (x ^ (x >> 15)) * _MULTIPLIERS[1]
    return x ^ (x >> 16)
