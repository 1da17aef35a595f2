"""Attention of new frames to cached and new frames as a TPU kernel that reads the cache where it is.

XLA would split the heads of the cache before its products, which copies the whole cache in every layer. The kernel
reads blocks of filled slots, heads merged. It keeps running sums of the softmax, as `layers/frame_attention_tpu.py`.

Dimension key: L blocks of the network, B clips, R new frames, F cache slots, N tokens of a frame, n queries of a frame,
D width of all heads together, H heads, d head width, W lanes of a group of heads, T steps; q, k: tokens of a block.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from magi_jax.layers import frame_attention_tpu as kernels
from magi_jax.layers.kernel_sizes import LANES, LARGEST_BLOCK, SUBLANES, Blocks, Sizes
from magi_jax.layers.kv_cache import KVCache

Array = jax.Array

# Rows of the list of steps. SOURCE is 0 where the step has nothing to do, else NEW or CACHED.
FRAME, BLOCK, FIRST, LAST, SOURCE, NEW_FRAME, NEW_BLOCK, SLOT, SLOT_BLOCK = range(9)
NEW, CACHED = 1, 2


def cached_frame_attention(
    q: Array, k: Array, v: Array, cache: KVCache, block: Array, mask: Array, heads: int, interpret: bool = False
) -> Array:
    """Attend over cached and new frames; arguments as in `layers/cached_frame_attention.py`.

    Without a TPU, `interpret` runs the kernel slowly, for tests.
    """
    clips, rows, _, width = q.shape
    sizes = _sizes(q.shape[2], k.shape[2], heads, width // heads)
    steps = _steps(sizes, rows, cache.capacity, mask)

    def of_frame(frame: int, number: int, size: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, size, sizes.lanes), lambda b, g, t, steps, _: (b, steps[frame, t], steps[number, t], g)
        )

    own, new = of_frame(FRAME, BLOCK, sizes.queries.size), of_frame(NEW_FRAME, NEW_BLOCK, sizes.keys.size)
    cached = pl.BlockSpec(
        (None, None, None, sizes.keys.size, sizes.lanes),
        lambda b, g, t, steps, block: (block[0], b, steps[SLOT, t], steps[SLOT_BLOCK, t], g),
    )
    scratch = kernels.sums_of_queries(sizes)
    names = ('q', 'new_k', 'new_v', 'cached_k', 'cached_v', 'out', *scratch)
    run = pl.pallas_call(
        lambda steps, _, *refs: _kernel(sizes, steps, dict(zip(names, refs))),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype, manual_axis_type=jax.typeof(q).manual_axis_type),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(clips, sizes.groups, steps.shape[1]),
            in_specs=[own, new, new, cached, cached],
            out_specs=own,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=kernels.VMEM_BYTES
        ),
        cost_estimate=_cost(q, k, cache, heads),
        interpret=interpret,
        name='cached_frame_attention',
    )
    return run(steps, jnp.reshape(block, (1,)).astype(jnp.int32), q, k, v, cache.k, cache.v)


def _sizes(queries: int, keys: int, heads: int, width: int) -> Sizes:
    """Return sizes without padding, because a cache cannot be padded in place."""
    together = LANES // width if LANES % width == 0 else heads
    together = together if heads % together == 0 else heads
    return Sizes(_whole_blocks(queries), _whole_blocks(keys), heads, width, width, together, ())


def _whole_blocks(tokens: int) -> Blocks:
    """Return the largest equal blocks of whole registers; one block where the tokens cannot be cut."""
    blocks = [size for size in range(SUBLANES, LARGEST_BLOCK + 1, SUBLANES) if tokens % size == 0]
    size = tokens if tokens <= LARGEST_BLOCK or not blocks else blocks[-1]
    return Blocks(tokens, tokens // size, size)


def _steps(sizes: Sizes, rows: int, capacity: int, mask: Array) -> Array:
    """List the steps of one clip and group, int32 [9, T]: for each block of queries new frames, then cache slots."""
    frames = [(NEW, frame) for frame in range(rows)] + [(CACHED, slot) for slot in range(capacity)]
    blocks = range(rows), range(sizes.queries.count), frames, range(sizes.keys.count)
    steps = [(row, number, *frame, key_block) for row, number, frame, key_block in itertools.product(*blocks)]
    row, number, source, frame, key_block = np.array(steps).T
    each = len(frames) * sizes.keys.count
    first, last = (np.arange(len(steps)) % each == end for end in (0, each - 1))
    visible = mask[row, np.where(source == CACHED, frame, capacity + frame)]
    found = [jnp.asarray(x, jnp.int32) for x in (row, number, first, last)]
    found.append(jnp.where(visible, source, 0).astype(jnp.int32))
    for kind in (NEW, CACHED):
        # A step that does not read this source names the block that is already there, so nothing is fetched.
        latest = jax.lax.cummax(jnp.where(visible & (source == kind), np.arange(len(steps)), -1))
        found += [jnp.where(latest < 0, 0, jnp.asarray(x, jnp.int32)[latest]) for x in (frame, key_block)]
    return jnp.stack(found)


def _cost(q: Array, k: Array, cache: KVCache, heads: int) -> pl.CostEstimate:
    """Estimate the costs with a full cache."""
    clips, rows, queries, width = q.shape
    frames = rows + cache.capacity
    pairs = clips * rows * queries * frames * k.shape[2]
    bytes_of_frames = 2 * clips * frames * k.shape[2] * width * cache.k.dtype.itemsize
    return pl.CostEstimate(flops=4 * pairs * width, transcendentals=pairs * heads, bytes_accessed=bytes_of_frames)


def _kernel(sizes: Sizes, steps: Any, refs: dict[str, Any]) -> None:
    step = pl.program_id(2)
    pl.when(steps[FIRST, step] == 1)(lambda: kernels.start_sums(refs))

    def add(name: str) -> None:
        k, v = (refs[f'{name}_{part}'][...].astype(refs['q'].dtype) for part in 'kv')
        kernels.add_keys(sizes, refs, k, v, 0)

    pl.when(steps[SOURCE, step] == NEW)(lambda: add('new'))
    pl.when(steps[SOURCE, step] == CACHED)(lambda: add('cached'))
    pl.when(steps[LAST, step] == 1)(lambda: kernels.finish_sums(sizes, refs))
