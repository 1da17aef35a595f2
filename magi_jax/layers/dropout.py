"""Dropout whose draws belong to a clip's tokens, not to places in an array: the same on any mesh and in any batch.

One random byte decides about one value, so rates are rounded to 256ths (0.1 is 0.1016): a quarter of the random words.

Dimension key: B clips, R rows (frames) of the whole sequence, r, n: rows and sites that this device holds.
"""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


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
        fold = jax.random.fold_in
        per_clip = jax.vmap(fold, (0, None))(self.keys, layer)
        per_row = jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(per_clip, rows)
        per_token = jax.vmap(jax.vmap(jax.vmap(fold, (None, 0)), (0, None)), (0, None))(per_row, sites)
        return TokenDropout(per_token, self.rows, self.numbers, self.rate)


@flax.struct.dataclass
class TokenDropout:
    """`ClipDropout` for one layer's tokens: `keys` are [B, r, n]."""

    keys: Array
    rows: Array
    numbers: int = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    @property
    def _threshold(self) -> int:
        return round(256 * self.rate)

    @property
    def scale(self) -> float:
        """What keeps the expectation: 1 / probability of being kept."""
        return 256 / (256 - self._threshold)

    def kept(self, purpose: int, count: int) -> Array:
        """bool [B, r, n, count] draws of a purpose; `purpose` tells apart the draws of one layer."""

        def draw(key: Array) -> Array:
            words = jax.random.bits(jax.random.fold_in(key, purpose), (-(-count // 4),), jnp.uint32)
            # Shifts, not a bitcast to [words, 4]: a TPU would pad that last axis to 128.
            bytes_ = jnp.concatenate([(words >> shift) & 255 for shift in (0, 8, 16, 24)])
            return bytes_[:count] >= self._threshold

        return jax.vmap(jax.vmap(jax.vmap(draw)))(self.keys)


def drop(x: Array, dropout: TokenDropout | None, purpose: int) -> Array:
    """x [B, r, n, D] with some values zero and the others scaled up; unchanged without `dropout`."""
    if dropout is None:
        return x
    return keep(x, dropout.kept(purpose, x.shape[-1]), dropout)


def keep(x: Array, kept: Array, dropout: TokenDropout) -> Array:
    """x, scaled up where `kept` (same shape) is True, zero elsewhere."""
    return jnp.where(kept, x * dropout.scale, 0).astype(x.dtype)
