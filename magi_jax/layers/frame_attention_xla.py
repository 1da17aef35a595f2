"""Joint attention by visible frames in plain XLA: query frame after query frame, in chunks of queries.

Dimension key: B clips, R query frames, S key frames, N tokens of a key frame, n tokens of a query frame, H heads, d
head width, K tokens of the visible frames.
"""

import einops
import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.layers import dense_attention

Array = jax.Array
Seen = tuple[tuple[int, ...], ...]  # for each query frame, the key frames that it sees, in ascending order


def forward(q: Array, k: Array, v: Array, seen: Seen) -> tuple[Array, Array]:
    """Compute attention [B, R, n, H, d] and the logarithms of the softmax denominators, float32 [B, R, n, H]."""
    parts = [
        dense_attention.forward(q[:, row], join_tokens(k, frames), join_tokens(v, frames))
        for row, frames in enumerate(seen)
    ]
    out, denominator = (jnp.stack(part, axis=1) for part in zip(*parts))
    return out, denominator


def backward(
    q: Array, k: Array, v: Array, seen: Seen, out: Array, denominator: Array, gradient: Array
) -> tuple[Array, Array, Array]:
    """Compute the gradients of q, k and v from the results of `forward` and the gradient of its output."""
    dk, dv, dqs = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32), []
    for row, frames in enumerate(seen):
        keys, values = join_tokens(k, frames), join_tokens(v, frames)
        results = (x[:, row] for x in (out, denominator, gradient))
        dq, of_keys, of_values = dense_attention.backward(q[:, row], keys, values, None, *results)
        dqs.append(dq)
        dk, dv = _add_to_frames(dk, of_keys, frames), _add_to_frames(dv, of_values, frames)
    return jnp.stack(dqs, axis=1), dk.astype(k.dtype), dv.astype(v.dtype)


def _runs(frames: tuple[int, ...]) -> list[slice]:
    """Return the runs of neighbouring frames. A slice of a run needs no gather."""
    runs = np.split(np.array(frames), np.flatnonzero(np.diff(frames) > 1) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]


def join_tokens(x: Array, frames: tuple[int, ...]) -> Array:
    """Join the tokens of some frames of [B, S, N, H, d] to [B, K, H, d]."""
    joined = jnp.concatenate([x[:, run] for run in _runs(frames)], axis=1)
    return einops.rearrange(joined, 'b s n h d -> b (s n) h d')


def _add_to_frames(total: Array, of_tokens: Array, frames: tuple[int, ...]) -> Array:
    """Add [B, K, H, d] of some frames to [B, S, N, H, d]."""
    of_frames, start = einops.rearrange(of_tokens, 'b (s n) h d -> b s n h d', n=total.shape[2]), 0
    for run in _runs(frames):
        stop = start + run.stop - run.start
        total = total.at[:, run].add(of_frames[:, start:stop])
        start = stop
    return total
