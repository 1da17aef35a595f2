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
import itertools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array
Seen = tuple[tuple[int, ...], ...]  # for each query frame, the key frames that it sees

LANES, SUBLANES = 128, 16  # of a register of 16-bit values
LARGEST_BLOCK = 512
VMEM_BYTES = 64 * 2**20
QUERY_GRADIENT_BYTES = 40 * 2**20  # of VMEM
LOWEST = float(np.finfo(np.float32).min)
# Rows of the list of steps. FIRST and LAST mark the first and the last of the steps that add to one result.
QUERY_FRAME, QUERY_BLOCK, KEY_FRAME, KEY_BLOCK, FIRST, LAST = range(6)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The cut of `tokens` into `count` blocks of `size` tokens; the last one may end in padding."""

    tokens: int
    count: int
    size: int

    @classmethod
    def of(cls, tokens: int) -> '_Blocks':
        count = pl.cdiv(tokens, LARGEST_BLOCK)
        return cls(tokens, count, pl.cdiv(pl.cdiv(tokens, count), SUBLANES) * SUBLANES)

    @property
    def padded(self) -> int:
        return self.count * self.size


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Static sizes of a kernel."""

    queries: _Blocks
    keys: _Blocks
    heads: int
    width: int
    seen: Seen

    @classmethod
    def of(cls, q: Array, k: Array, seen: Seen) -> '_Sizes':
        return cls(_Blocks.of(q.shape[2]), _Blocks.of(k.shape[2]), *q.shape[3:], seen)

    @property
    def lanes_of_head(self) -> int:
        return pl.next_power_of_2(self.width) if self.width <= LANES else pl.cdiv(self.width, LANES) * LANES

    @property
    def together(self) -> int:
        return max(1, LANES // self.lanes_of_head)

    @property
    def groups(self) -> int:
        return pl.cdiv(self.heads, self.together)

    @property
    def lanes(self) -> int:
        return self.together * self.lanes_of_head

    def merge(self, x: Array, blocks: _Blocks) -> Array:
        """Merge [B, R, n, H, d] to [B, R, n, G W], with zeros as padding of tokens, heads and channels."""
        tokens, heads = blocks.padded - blocks.tokens, self.groups * self.together - self.heads
        x = jnp.pad(x, [(0, 0), (0, 0), (0, tokens), (0, heads), (0, self.lanes_of_head - self.width)])
        return einops.rearrange(x, 'b r n h d -> b r n (h d)')

    def split(self, x: Array, blocks: _Blocks) -> Array:
        """Invert `merge`."""
        x = einops.rearrange(x, 'b r n (h d) -> b r n h d', d=self.lanes_of_head)
        return x[:, :, : blocks.tokens, : self.heads, : self.width]

    def sums(self, like: Array) -> jax.ShapeDtypeStruct:
        """Return the shape of one float32 value for each query and head of `like` [B, R, ...]."""
        shape = (*like.shape[:2], self.groups, self.queries.count, self.together, self.queries.size)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def steps(self, by_keys: bool) -> np.ndarray:
        """List the steps of one clip and group, int32 [6, T], in the order of their query (or key) blocks."""
        pairs = [(row, frame) for row, frames in enumerate(self.seen) for frame in frames]
        blocks = itertools.product(range(self.queries.count), range(self.keys.count))
        steps = [(row, i, frame, j) for (row, frame), (i, j) in itertools.product(pairs, blocks)]
        steps = np.array(sorted(steps, key=lambda step: step[2:] + step[:2] if by_keys else step)).T
        changes = np.any(np.diff(steps[2:] if by_keys else steps[:2]), axis=0)
        ends = [np.pad(changes, pad, constant_values=True) for pad in ((1, 0), (0, 1))]
        return np.int32([*steps, *ends])


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
    sizes = _Sizes.of(q, k, seen)
    q = sizes.merge(q, sizes.queries)
    inputs = {'q': q, 'k': sizes.merge(k, sizes.keys), 'v': sizes.merge(v, sizes.keys)}
    scratch = {
        'highest': (sizes.together, sizes.queries.size),
        'total': (sizes.together, sizes.queries.size),
        'sum': (sizes.lanes, sizes.queries.size),
    }
    outputs = {'out': q, 'denominator': sizes.sums(q)}
    out, denominator = _call(_forward_kernel, sizes, inputs, outputs, scratch, interpret)
    return sizes.split(out, sizes.queries), denominator


def backward(
    q: Array, k: Array, v: Array, seen: Seen, out: Array, denominator: Array, gradient: Array, interpret: bool = False
) -> tuple[Array, Array, Array]:
    """Compute the gradients of q, k and v from the results of `forward` and the gradient of its output.

    The gradients of all queries of a clip stay in fast memory. Where they are too many, query frames are divided over
    several calls.
    """
    sizes = _Sizes.of(q, k, seen)
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
    sizes: _Sizes,
    dtype: Any,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Compute the gradients that come from some query frames; those of keys and values in `dtype`."""
    # The softmax gradient subtracts the weighted mean over keys, which equals sum_d(output * its gradient).
    mean = jnp.einsum('brnhd,brnhd->brhn', gradient, out, preferred_element_type=jnp.float32)
    padding = [(0, 0), (0, 0), (0, sizes.groups * sizes.together - sizes.heads)]
    mean = jnp.pad(mean, [*padding, (0, sizes.queries.padded - sizes.queries.tokens)])
    mean = einops.rearrange(mean, 'b r (g e) (c q) -> b r g c e q', e=sizes.together, q=sizes.queries.size)
    inputs = {name: sizes.merge(x, sizes.queries) for name, x in {'q': q, 'gradient': gradient}.items()}
    inputs |= {name: sizes.merge(x, sizes.keys) for name, x in {'k': k, 'v': v}.items()}
    of_keys = jax.ShapeDtypeStruct(inputs['k'].shape, dtype)
    outputs = {'dq': inputs['q'], 'dk': of_keys, 'dv': of_keys}
    scratch = {
        'dq_sum': (q.shape[1], sizes.queries.padded, sizes.lanes),
        'dk_sum': (sizes.keys.size, sizes.lanes),
        'dv_sum': (sizes.keys.size, sizes.lanes),
    }
    inputs |= {'denominator': denominator, 'mean': mean}
    dq, dk, dv = _call(_backward_kernel, sizes, inputs, outputs, scratch, interpret)
    unseen = np.setdiff1d(np.arange(k.shape[1]), np.concatenate(sizes.seen))
    if unseen.size:  # no step writes the gradients of these frames
        dk, dv = (x.at[:, unseen].set(0) for x in (dk, dv))
    return sizes.split(dq, sizes.queries), sizes.split(dk, sizes.keys), sizes.split(dv, sizes.keys)


def _call(
    kernel: Callable[..., None],
    sizes: _Sizes,
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
    sizes: _Sizes, inputs: dict[str, Array], outputs: dict[str, Any], steps: int, backward: bool
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


def _forward_kernel(sizes: _Sizes, steps: Any, refs: dict[str, Any]) -> None:
    step = pl.program_id(2)

    @pl.when(steps[FIRST, step] == 1)
    def start() -> None:
        refs['highest'][...] = jnp.full_like(refs['highest'], LOWEST)
        refs['total'][...] = jnp.zeros_like(refs['total'])
        refs['sum'][...] = jnp.zeros_like(refs['sum'])

    q, k, values = refs['q'][...], refs['k'][...], refs['v'][...].T
    for head in range(sizes.together):
        own, channels = pl.ds(head, 1), pl.ds(head * sizes.lanes_of_head, sizes.lanes_of_head)
        scores = _scores(sizes, k, _lanes_of(sizes, head, q), steps[KEY_BLOCK, step])
        highest = refs['highest'][own]
        higher = jnp.maximum(highest, jnp.max(scores, axis=0, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(highest - higher)
        refs['highest'][own] = higher
        refs['total'][own] = refs['total'][own] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        summed = _dot(values[head * sizes.lanes_of_head :][: sizes.lanes_of_head], weights.astype(values.dtype))
        refs['sum'][channels] = refs['sum'][channels] * shrink + summed

    @pl.when(steps[LAST, step] == 1)
    def finish() -> None:
        for head in range(sizes.together):
            channels = pl.ds(head * sizes.lanes_of_head, sizes.lanes_of_head)
            refs['sum'][channels] = refs['sum'][channels] / refs['total'][pl.ds(head, 1)]
        refs['out'][...] = refs['sum'][...].T.astype(refs['out'].dtype)
        refs['denominator'][...] = refs['highest'][...] + jnp.log(refs['total'][...])


def _backward_kernel(sizes: _Sizes, steps: Any, refs: dict[str, Any]) -> None:
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


def _lanes_of(sizes: _Sizes, head: int, x: Array) -> Array:
    """Set the lanes of other heads to zero, so that a product over all lanes is one over those of `head`."""
    if sizes.together == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) - head * sizes.lanes_of_head
    return jnp.where((lane >= 0) & (lane < sizes.lanes_of_head), x, jnp.zeros_like(x))


def _scores(sizes: _Sizes, k: Array, q: Array, block: Array) -> Array:
    """Return float32 scores [k, q], with the lowest float where a key is padding."""
    scores = _dot(k, q, transpose=True) * sizes.width**-0.5
    if sizes.keys.padded == sizes.keys.tokens:
        return scores
    key = block * sizes.keys.size + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where(key < sizes.keys.tokens, scores, LOWEST)


def _dot(a: Array, b: Array, transpose: bool = False) -> Array:
    """Multiply [m, k] with [k, n], or with `transpose` of [n, k], to float32 [m, n]."""
    return jax.lax.dot_general(a, b, (((1,), (int(transpose),)), ((), ())), preferred_element_type=jnp.float32)
