"""Joint attention by visible frames as two TPU kernels, forward and backward. Scores are never stored in memory.

The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691). A kernel visits one block of queries and one block of
keys in each step. The steps are listed in advance, so only blocks of visible frames are read and computed. Scores are
held as [keys, queries]: the softmax then reduces over sublanes, which is faster than over lanes.

Heads stay merged, as the linear layers write and read them. A step computes all heads that share the 128 lanes of a
register: two of 64 channels. JAX's splash attention needs heads apart, which costs transposed copies padded to 128
lanes. It also cannot be traced in a `shard_map` that checks how values vary over the mesh.

Dimension key: B clips, R query frames, S key frames, N tokens of a key frame, n tokens of a query frame, H heads, d
head width, G groups of heads, e heads of a group, W lanes of a group, T steps; q, k: tokens of a block.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from magi_jax.layers.kernel_sizes import (
    FIRST,
    KEY_BLOCK,
    KEY_FRAME,
    LAST,
    QUERY_BLOCK,
    QUERY_FRAME,
    Seen,
    Sizes,
)

Array = jax.Array

VMEM_BYTES = 64 * 2**20
QUERY_GRADIENT_BYTES = 40 * 2**20  # of VMEM
LOWEST = float(np.finfo(np.float32).min)


def forward(q: Array, k: Array, v: Array, seen: Seen, interpret: bool = False) -> tuple[Array, Array]:
    """Compute attention and the logarithms of the softmax denominators.

    Args:
      q: queries [B, R, n, H, d].
      k: keys [B, S, N, H, d].
      v: values, same shape as the keys.
      seen: the key frames that each query frame sees, at least one.
      interpret: run the kernel without a TPU. That is slow and meant for tests.

    Returns:
      Output [B, R, n, H, d], and the logarithms, float32 [B, R, G, blocks of queries, e, q].
    """
    sizes = Sizes.of(q, k, seen)
    q = sizes.merge(q, sizes.queries)
    inputs = {'q': q, 'k': sizes.merge(k, sizes.keys), 'v': sizes.merge(v, sizes.keys)}
    outputs = {'out': q, 'denominator': sizes.sums(q)}
    out, denominator = _call(_forward_kernel, sizes, inputs, outputs, sums_of_queries(sizes), interpret)
    return sizes.split(out, sizes.queries), denominator


def backward(
    q: Array, k: Array, v: Array, seen: Seen, out: Array, denominator: Array, gradient: Array, interpret: bool = False
) -> tuple[Array, Array, Array]:
    """Compute the gradients of q, k and v from the results of `forward` and the gradient of its output.

    The gradients of all queries of a clip stay in fast memory. Where they are too many, query frames are divided over
    several calls.
    """
    sizes = Sizes.of(q, k, seen)
    bytes_of_frame = sizes.queries.padded * sizes.lanes * (4 + 2 * q.dtype.itemsize)  # a sum, and two output buffers
    rows = max(1, QUERY_GRADIENT_BYTES // bytes_of_frame)
    parts = [slice(first, first + rows) for first in range(0, len(seen), rows)]
    dtype = k.dtype if len(parts) == 1 else jnp.float32
    gradients = []
    for part in parts:
        of_part = q[:, part], k, v, out[:, part], denominator[:, part], gradient[:, part]
        gradients.append(_backward_of_rows(*of_part, dataclasses.replace(sizes, seen=seen[part]), dtype, interpret))
    dq, dk, dv = zip(*gradients)
    return jnp.concatenate(dq, axis=1), sum(dk[1:], dk[0]).astype(k.dtype), sum(dv[1:], dv[0]).astype(v.dtype)


def _backward_of_rows(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    denominator: Array,
    gradient: Array,
    sizes: Sizes,
    dtype: Any,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Compute the gradients that come from some query frames; those of keys and values in `dtype`."""
    inputs = {name: sizes.merge(x, sizes.queries) for name, x in {'q': q, 'gradient': gradient}.items()}
    inputs |= {name: sizes.merge(x, sizes.keys) for name, x in {'k': k, 'v': v}.items()}
    of_keys = jax.ShapeDtypeStruct(inputs['k'].shape, dtype)
    outputs = {'dq': inputs['q'], 'dk': of_keys, 'dv': of_keys}
    scratch = {
        'dq_sum': (q.shape[1], sizes.queries.padded, sizes.lanes),
        'dk_sum': (sizes.keys.size, sizes.lanes),
        'dv_sum': (sizes.keys.size, sizes.lanes),
    }
    mean = _mean(sizes, sizes.merge(out, sizes.queries), inputs['gradient'])
    inputs |= {'denominator': denominator, 'mean': mean}
    dq, dk, dv = _call(_backward_kernel, sizes, inputs, outputs, scratch, interpret)
    unseen = np.setdiff1d(np.arange(k.shape[1]), np.concatenate(sizes.seen))
    if unseen.size:  # no step writes the gradients of these frames
        dk, dv = (x.at[:, unseen].set(0) for x in (dk, dv))
    return sizes.split(dq, sizes.queries), sizes.split(dk, sizes.keys), sizes.split(dv, sizes.keys)


def _mean(sizes: Sizes, out: Array, gradient: Array) -> Array:
    """Return what the softmax gradient subtracts, the mean over keys weighted by attention: sum_d(output * gradient).

    Args:
      sizes: sizes of the kernel.
      out: output with merged heads, [B, R, n, G W].
      gradient: its gradient, same shape.

    Returns:
      float32 [B, R, G, blocks of queries, e, q].
    """
    product = out.astype(jnp.float32) * gradient.astype(jnp.float32)
    # A product with a 0/1 matrix sums each head. A sum over an axis of channels would copy both factors.
    of_head = np.repeat(np.eye(sizes.groups * sizes.together, dtype=np.float32), sizes.lanes_of_head, axis=0)
    mean = jnp.einsum('brnw,wh->brhn', product, of_head, precision=jax.lax.Precision.HIGHEST)
    return einops.rearrange(mean, 'b r (g e) (c q) -> b r g c e q', e=sizes.together, q=sizes.queries.size)


def _call(
    kernel: Callable[..., None],
    sizes: Sizes,
    inputs: dict[str, Array],
    outputs: dict[str, Any],
    scratch: dict[str, tuple[int, ...]],
    interpret: bool,
) -> tuple[Array, ...]:
    """Run `kernel(sizes, steps, refs by name)` for every clip, group of heads and step."""
    backward = 'gradient' in inputs
    steps = sizes.steps(by_keys=backward)

    def spec(name: str, array: Any) -> pl.BlockSpec:
        """Return the spec of the block of a step. Gradients of queries stay in fast memory through all steps."""
        if name == 'dq':
            return pl.BlockSpec((None, *array.shape[1:3], sizes.lanes), lambda b, g, t, steps: (b, 0, 0, g))
        if array.ndim == 6:
            block = (None, None, None, None, *array.shape[4:])
            return pl.BlockSpec(
                block, lambda b, g, t, steps: (b, steps[QUERY_FRAME, t], g, steps[QUERY_BLOCK, t], 0, 0)
            )
        of_keys = name in ('k', 'v', 'dk', 'dv')
        frame, block = (KEY_FRAME, KEY_BLOCK) if of_keys else (QUERY_FRAME, QUERY_BLOCK)
        size = (sizes.keys if of_keys else sizes.queries).size
        return pl.BlockSpec(
            (None, None, size, sizes.lanes), lambda b, g, t, steps: (b, steps[frame, t], steps[block, t], g)
        )

    names, varying = (*inputs, *outputs, *scratch), jax.typeof(inputs['q']).manual_axis_type
    run = pl.pallas_call(
        lambda steps, *refs: kernel(sizes, steps, dict(zip(names, refs))),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs.values()],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(inputs['q'].shape[0], sizes.groups, steps.shape[1]),
            in_specs=[spec(name, array) for name, array in inputs.items()],
            out_specs=[spec(name, array) for name, array in outputs.items()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=_cost(sizes, inputs, outputs, steps.shape[1], backward),
        interpret=interpret,
        name=kernel.__name__.strip('_'),
    )
    return tuple(run(jnp.asarray(steps), *inputs.values()))


def _cost(
    sizes: Sizes, inputs: dict[str, Array], outputs: dict[str, Any], steps: int, backward: bool
) -> pl.CostEstimate:
    """Estimate the costs of a kernel, for the scheduler of the compiler and for reports."""
    clips, products = inputs['q'].shape[0], 5 if backward else 2
    scores = clips * sizes.heads * sum(map(len, sizes.seen)) * sizes.queries.tokens * sizes.keys.tokens
    read_in_each_step = ('q', 'gradient', 'denominator', 'mean') if backward else ('k', 'v')
    values = 0
    for name, x in (inputs | outputs).items():
        if name in read_in_each_step:
            blocks = sizes.queries if backward else sizes.keys
            values += x.dtype.itemsize * x.size // (x.shape[1] * blocks.count) * steps
        else:
            values += x.dtype.itemsize * x.size
    return pl.CostEstimate(flops=2 * products * scores * sizes.width, transcendentals=scores, bytes_accessed=values)


def _forward_kernel(sizes: Sizes, steps: Any, refs: dict[str, Any]) -> None:
    step = pl.program_id(2)
    pl.when(steps[FIRST, step] == 1)(lambda: start_sums(refs))
    add_keys(sizes, refs, refs['k'][...], refs['v'][...], steps[KEY_BLOCK, step])

    @pl.when(steps[LAST, step] == 1)
    def finish() -> None:
        finish_sums(sizes, refs)
        refs['denominator'][...] = refs['highest'][...] + jnp.log(refs['total'][...])


def sums_of_queries(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the running maximum and sum of the softmax and of the weighted values, of one block."""
    size = sizes.queries.size
    return {'highest': (sizes.together, size), 'total': (sizes.together, size), 'sum': (sizes.lanes, size)}


def start_sums(refs: dict[str, Any]) -> None:
    """Set the sums of a block of queries to those of no keys."""
    refs['highest'][...] = jnp.full_like(refs['highest'], LOWEST)
    refs['total'][...] = jnp.zeros_like(refs['total'])
    refs['sum'][...] = jnp.zeros_like(refs['sum'])


def add_keys(sizes: Sizes, refs: dict[str, Any], k: Array, v: Array, block: Array) -> None:
    """Add the keys and values [k, W] of one block of a frame to the sums of the block of queries `refs['q']`."""
    q, values = refs['q'][...], v.T
    for head in range(sizes.together):
        own, channels = pl.ds(head, 1), slice(head * sizes.lanes_of_head, (head + 1) * sizes.lanes_of_head)
        scores = _scores(sizes, k, _lanes_of(sizes, head, q), block)
        highest = refs['highest'][own]
        higher = jnp.maximum(highest, jnp.max(scores, axis=0, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(highest - higher)
        refs['highest'][own] = higher
        refs['total'][own] = refs['total'][own] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        refs['sum'][channels] = refs['sum'][channels] * shrink + _dot(values[channels], weights.astype(v.dtype))


def finish_sums(sizes: Sizes, refs: dict[str, Any]) -> None:
    """Write the output of a block of queries."""
    for head in range(sizes.together):
        channels = slice(head * sizes.lanes_of_head, (head + 1) * sizes.lanes_of_head)
        refs['sum'][channels] = refs['sum'][channels] / refs['total'][pl.ds(head, 1)]
    refs['out'][...] = refs['sum'][...].T.astype(refs['out'].dtype)


def _backward_kernel(sizes: Sizes, steps: Any, refs: dict[str, Any]) -> None:
    step = pl.program_id(2)

    @pl.when(step == 0)
    def start_queries() -> None:
        refs['dq_sum'][...] = jnp.zeros_like(refs['dq_sum'])

    @pl.when(steps[FIRST, step] == 1)
    def start_keys() -> None:
        refs['dk_sum'][...] = jnp.zeros_like(refs['dk_sum'])
        refs['dv_sum'][...] = jnp.zeros_like(refs['dv_sum'])

    k, v = refs['k'][...], refs['v'][...]
    tokens = pl.ds(steps[QUERY_BLOCK, step] * sizes.queries.size, sizes.queries.size)
    for head in range(sizes.together):
        q, gradient = (_lanes_of(sizes, head, refs[name][...]) for name in ('q', 'gradient'))
        scores = _scores(sizes, k, q, steps[KEY_BLOCK, step])
        weights = jnp.exp(scores - refs['denominator'][pl.ds(head, 1)])
        change = _dot(v, gradient, transpose=True) - refs['mean'][pl.ds(head, 1)]
        of_scores = (weights * change * sizes.width**-0.5).astype(q.dtype)
        refs['dv_sum'][...] += _dot(weights.astype(gradient.dtype), gradient)
        refs['dk_sum'][...] += _dot(of_scores, q)
        refs['dq_sum'][steps[QUERY_FRAME, step], tokens] += _dot(of_scores.T, _lanes_of(sizes, head, k))

    @pl.when(steps[LAST, step] == 1)
    def finish_keys() -> None:
        refs['dk'][...] = refs['dk_sum'][...].astype(refs['dk'].dtype)
        refs['dv'][...] = refs['dv_sum'][...].astype(refs['dv'].dtype)

    @pl.when(step == pl.num_programs(2) - 1)
    def finish_queries() -> None:
        refs['dq'][...] = refs['dq_sum'][...].astype(refs['dq'].dtype)


def _lanes_of(sizes: Sizes, head: int, x: Array) -> Array:
    """Set the lanes of other heads to zero, so that a product over all lanes is one over those of `head`."""
    if sizes.together == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) - head * sizes.lanes_of_head
    return jnp.where((lane >= 0) & (lane < sizes.lanes_of_head), x, jnp.zeros_like(x))


def _scores(sizes: Sizes, k: Array, q: Array, block: Array) -> Array:
    """Return float32 scores [k, q], with the lowest float where a key is padding."""
    scores = _dot(k, q, transpose=True) * sizes.width**-0.5
    if sizes.keys.padded == sizes.keys.tokens:
        return scores
    key = block * sizes.keys.size + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where(key < sizes.keys.tokens, scores, LOWEST)


def _dot(a: Array, b: Array, transpose: bool = False) -> Array:
    """Multiply [m, k] with [k, n], or with `transpose` of [n, k], to float32 [m, n]."""
    return jax.lax.dot_general(a, b, (((1,), (int(transpose),)), ((), ())), preferred_element_type=jnp.float32)
