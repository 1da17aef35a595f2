"""Attention with dropout on its weights as two GPU kernels, forward and backward. Scores are never stored in memory.

The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691). Library kernels cannot be used, because they do not
accept the dropout hash of `layers/dropout.py`. One program instance owns one block of queries of one head (backward:
and the block of keys) and loops over the other blocks. Pallas' Triton compiler needs sides that are powers of two. So a
head is cut into pieces (80 = 64 + 16). Where a head or a sequence ends inside a block, loads return zeros and stores
are masked.

Dimension key: B clips, G sequences of a clip, S tokens of a sequence, H heads, d head width, e width of a piece;
q, k: tokens of a block of queries or keys (equally many).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from magi_jax.layers.dropout import FeatureBits, keep_factors

Array = jax.Array
Pieces = list[Array]  # [q or k, e] each

SMALLEST_SIDE, LARGEST_BLOCK = 16, 64  # limits of the matrix unit and of the registers
STAGES = 3  # pipeline stages; chosen, like the warps, by timing the paper's model on an H200
MASKED = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of `self_attention`, documented there."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    draws: FeatureBits | None
    rate: float

    def named(self) -> dict[str, Array]:
        """Return the arrays by name.

        They are q, k, v; mask int8 [B or 1, S, S]; random bits first, second [B, G, S] and features [H, S].
        """
        named = {'q': self.q, 'k': self.k, 'v': self.v}
        if self.mask is not None:
            named['mask'] = self.mask.astype(jnp.int8).reshape(-1, *self.mask.shape[-2:])
        if self.draws is not None:
            (first, second), features = self.draws
            named['first'], named['second'] = first[:, :, 0, :, 0], second[:, :, 0, :, 0]
            named['features'] = features[0, 0, :, 0]
        return named


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Static sizes of a kernel: sequence length S, head width d, and the dropout rate (unused without random bits)."""

    length: int
    width: int
    rate: float

    @property
    def block(self) -> int:
        return min(LARGEST_BLOCK, max(SMALLEST_SIDE, pl.next_power_of_2(self.length)))

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.length, self.block)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Return (offset, width) of each piece of a head."""
        pieces, first = [], 0
        while first < self.width:
            side = max(SMALLEST_SIDE, 1 << (self.width - first).bit_length() - 1)
            pieces.append((first, side))
            first += side
        return pieces

    @property
    def scale(self) -> float:
        return self.width**-0.5

    def zeros(self) -> Pieces:
        """Return float32 zeros shaped as the pieces of one block."""
        return [jnp.zeros((self.block, side)) for _, side in self.pieces]


def forward(inputs: Inputs) -> tuple[Array, Array]:
    """Compute attention [B, G, S, H, d] and the logarithms of the softmax denominators, float32 [B, G, H, S]."""
    clips, sequences, length, heads, _ = inputs.q.shape
    rows = jax.ShapeDtypeStruct((clips, sequences, heads, length), jnp.float32)
    return _call(_forward_kernel, inputs.rate, inputs.named(), {'out': inputs.q, 'denominator': rows})


def backward(inputs: Inputs, denominator: Array, mean: Array, gradient: Array) -> tuple[Array, Array, Array]:
    """Compute the gradients of q, k and v.

    Args:
      inputs: arguments of `forward`.
      denominator: log denominators that `forward` returned.
      mean: float32 [B, G, H, S], sum over d of the output times its gradient.
      gradient: gradient of the output, [B, G, S, H, d].
    """
    given = inputs.named() | {'gradient': gradient, 'denominator': denominator, 'mean': mean}
    return _call(_backward_kernel, inputs.rate, given, {'dq': inputs.q, 'dk': inputs.k, 'dv': inputs.v})


def _call(
    kernel: Callable[..., None], rate: float, inputs: dict[str, Array], outputs: dict[str, Any]
) -> tuple[Array, ...]:
    """Run `kernel(sizes, refs by name)` for every sequence, head and block; return arrays shaped like `outputs`.

    Without a GPU, Pallas interprets the kernel. That is slow and meant for tests.
    """
    _, sequences, length, heads, width = inputs['q'].shape
    sizes = _Sizes(length, width, rate)
    tokens = sizes.block * sizes.blocks

    def spec(name: str, array: Any) -> pl.BlockSpec:
        """Return the spec that gives a kernel all blocks of one sequence and head; kernels slice them."""
        if name == 'features':
            return pl.BlockSpec((None, tokens), lambda i, h, j: (h, 0))
        if name == 'mask':
            each = array.shape[0] > 1
            return pl.BlockSpec((None, tokens, tokens), lambda i, h, j: (i // sequences if each else 0, 0, 0))
        if array.ndim == 3:
            return pl.BlockSpec((None, None, tokens), lambda i, h, j: (i // sequences, i % sequences, 0))
        if array.ndim == 4:
            return pl.BlockSpec((None, None, None, tokens), lambda i, h, j: (i // sequences, i % sequences, h, 0))
        width = sum(side for _, side in sizes.pieces)
        return pl.BlockSpec((None, None, tokens, None, width), lambda i, h, j: (i // sequences, i % sequences, 0, h, 0))

    names = (*inputs, *outputs)
    varying = jax.typeof(inputs['q']).manual_axis_type
    run = pl.pallas_call(
        lambda *refs: kernel(sizes, dict(zip(names, refs))),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs.values()],
        grid=(inputs['q'].shape[0] * sequences, heads, sizes.blocks),
        in_specs=[spec(name, array) for name, array in inputs.items()],
        out_specs=[spec(name, array) for name, array in outputs.items()],
        compiler_params=triton.CompilerParams(num_warps=4 if sizes.block > 32 else 2, num_stages=STAGES),
        interpret=jax.default_backend() != 'gpu',
        name=kernel.__name__.strip('_'),
    )
    return tuple(run(*inputs.values()))


def _forward_kernel(sizes: _Sizes, refs: dict[str, Any]) -> None:
    own = pl.program_id(2) * sizes.block
    q = _load(sizes, refs['q'], own)

    def visit(number: Array, carry: tuple[Array, Array, Pieces]) -> tuple[Array, Array, Pieces]:
        highest, total, out = carry
        keys = number * sizes.block
        scores = _scores(sizes, refs, q, _load(sizes, refs['k'], keys), own, keys)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp(scores - higher[:, None]), jnp.exp(highest - higher)
        out = [piece * shrink[:, None] for piece in out]
        dropped = weights * _factors(sizes, refs, own, keys)
        out = _add_products(out, dropped.astype(q[0].dtype), _load(sizes, refs['v'], keys))
        return higher, total * shrink + jnp.sum(weights, axis=1), out

    start = jnp.full((sizes.block,), MASKED), jnp.zeros((sizes.block,)), sizes.zeros()
    highest, total, out = jax.lax.fori_loop(0, sizes.blocks, visit, start)
    _store(sizes, refs['out'], own, [piece / total[:, None] for piece in out])
    triton.store(_pointer_range(sizes, refs['denominator'], own), highest + jnp.log(total), mask=_in_bounds(sizes, own))


def _backward_kernel(sizes: _Sizes, refs: dict[str, Any]) -> None:
    own = pl.program_id(2) * sizes.block

    def pairs(queries: Array, keys: Array) -> tuple[Pieces, Pieces, Pieces, Array, Array]:
        """Return blocks of q, output gradient, k, and [q, k] arrays: weights after dropout, score gradients."""
        q, gradient = _load(sizes, refs['q'], queries), _load(sizes, refs['gradient'], queries)
        k, v = _load(sizes, refs['k'], keys), _load(sizes, refs['v'], keys)
        weights = jnp.exp(_scores(sizes, refs, q, k, queries, keys) - _row(sizes, refs['denominator'], queries))
        factor = _factors(sizes, refs, queries, keys)
        change = _products(gradient, v) * factor - _row(sizes, refs['mean'], queries)
        dtype = q[0].dtype
        return q, gradient, k, (weights * factor).astype(dtype), (weights * change * sizes.scale).astype(dtype)

    def of_keys(number: Array, carry: tuple[Pieces, Pieces, Pieces]) -> tuple[Pieces, Pieces, Pieces]:
        dq, dk, dv = carry
        q, gradient, k, weights, of_scores = pairs(number * sizes.block, own)
        if sizes.blocks == 1:
            dq = _add_products(dq, of_scores, k)
        return dq, _add_products(dk, of_scores, q, transpose=True), _add_products(dv, weights, gradient, transpose=True)

    def of_queries(number: Array, dq: Pieces) -> Pieces:
        _, _, k, _, of_scores = pairs(own, number * sizes.block)
        return _add_products(dq, of_scores, k)

    dq, dk, dv = jax.lax.fori_loop(0, sizes.blocks, of_keys, (sizes.zeros(), sizes.zeros(), sizes.zeros()))
    if sizes.blocks > 1:
        dq = jax.lax.fori_loop(0, sizes.blocks, of_queries, sizes.zeros())
    for name, gradient in {'dq': dq, 'dk': dk, 'dv': dv}.items():
        _store(sizes, refs[name], own, gradient)


def _scores(sizes: _Sizes, refs: dict[str, Any], q: Pieces, k: Pieces, queries: Array, keys: Array) -> Array:
    """Return float32 scores [q, k], with the lowest float where a pair is masked."""
    scores, allowed = _products(q, k) * sizes.scale, _in_bounds(sizes, keys)[None]
    if 'mask' in refs:
        block = refs['mask'].at[pl.ds(queries, sizes.block), pl.ds(keys, sizes.block)]
        allowed = triton.load(block, mask=_in_bounds(sizes, queries)[:, None] & allowed, other=0) != 0
    elif sizes.length % sizes.block == 0:
        return scores
    return jnp.where(allowed, scores, MASKED)


def _products(a: Pieces, b: Pieces) -> Array:
    """Multiply [q, d] by the transpose of [k, d]: float32 [q, k]."""
    return sum(triton.dot(piece, other, trans_b=True) for piece, other in zip(a, b))


def _add_products(total: Pieces, pairs: Array, of: Pieces, transpose: bool = False) -> Pieces:
    """Add a product to `total`: [q, k] x [k, d] to [q, d], or with `transpose` [k, q] x [q, d] to [k, d]."""
    return [piece + triton.dot(pairs, other, trans_a=transpose) for piece, other in zip(total, of)]


def _factors(sizes: _Sizes, refs: dict[str, Any], queries: Array, keys: Array) -> Array | float:
    """Return the dropout factors of the weights, [q, k]."""
    if 'first' not in refs:
        return 1.0
    words = tuple(_row(sizes, refs[name], queries) for name in ('first', 'second'))
    features = triton.load(_pointer_range(sizes, refs['features'], keys), mask=_in_bounds(sizes, keys), other=0)
    return keep_factors((words, features[None]), sizes.rate)


def _in_bounds(sizes: _Sizes, start: Array) -> Array:
    """Return bool [q or k]: which positions of a block lie inside the sequence."""
    return start + jnp.arange(sizes.block) < sizes.length


def _pointer_range(sizes: _Sizes, ref: Any, start: Array) -> Any:
    return ref.at[pl.ds(start, sizes.block)]


def _row(sizes: _Sizes, ref: Any, start: Array) -> Array:
    """Load one value for each token of a block: [q, 1]."""
    return triton.load(_pointer_range(sizes, ref, start), mask=_in_bounds(sizes, start), other=0)[:, None]


def _parts(sizes: _Sizes, ref: Any, start: Array) -> list[tuple[Any, Array]]:
    """Return, for each piece of a block, its reference and the mask of values that exist."""
    parts = []
    for first, side in sizes.pieces:
        inside = _in_bounds(sizes, start)[:, None] & (first + jnp.arange(side) < sizes.width)[None]
        parts.append((ref.at[pl.ds(start, sizes.block), pl.ds(first, side)], inside))
    return parts


def _load(sizes: _Sizes, ref: Any, start: Array) -> Pieces:
    return [triton.load(part, mask=inside, other=0) for part, inside in _parts(sizes, ref, start)]


def _store(sizes: _Sizes, ref: Any, start: Array, pieces: Pieces) -> None:
    for (part, inside), piece in zip(_parts(sizes, ref, start), pieces):
        triton.store(part, piece.astype(ref.dtype), mask=inside)
