"""Joint attention over space and time that is causal by frame: a token sees all tokens of the frames that its own sees.

Within one query frame attention is dense over the tokens of its visible key frames. So no implementation needs a mask
for each token, and frames that are not visible are neither read nor computed.

Dimension key: B clips, R query frames, S key frames, N tokens of a key frame, n tokens of a query frame, H heads,
d head width; K tokens of the visible frames.
"""

import functools
from typing import Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from magi_jax.layers import dense_attention
from magi_jax.layers.self_attention import DENOMINATOR, OUTPUT, self_attention

Array = jax.Array
Kept = tuple[Array, ...]
Span = tuple[int, int]  # first key frame, and the one after the last
Implementation = Literal['xla']
SMALL = 2**18  # (query, key) pairs of a clip and head up to which one masked product beats a loop over frames


def frame_attention(q: Array, k: Array, v: Array, visible: np.ndarray, implementation: Implementation = 'xla') -> Array:
    """Attend from every token of a query frame to all tokens of its visible key frames, with the softmax in float32.

    Args:
      q: queries [B, R, n, H, d].
      k: keys [B, S, N, H, d].
      v: values, same shape as the keys.
      visible: bool [R, S] of visible (query frame, key frame) pairs, at least one for each query frame.
      implementation: 'xla' runs everywhere.

    Returns:
      [B, R, n, H, d].
    """
    if not visible.any(axis=1).all():
        frames = np.flatnonzero(~visible.any(axis=1)).tolist()
        raise ValueError(f'query frames {frames} see no key frame: let each frame see itself')
    if implementation == 'xla' and q.shape[1] * q.shape[2] * k.shape[1] * k.shape[2] <= SMALL:
        return _attend_masked(q, k, v, visible)
    return _attend(q, k, v, tuple(map(_spans, visible)), implementation)


def _attend_masked(q: Array, k: Array, v: Array, visible: np.ndarray) -> Array:
    """Attend as `frame_attention` does, with one product over all frames and a mask for each token."""
    mask = np.kron(visible, np.ones((q.shape[2], k.shape[2]), bool))
    q_sequence, k, v = (einops.rearrange(x, 'b r n h d -> b 1 (r n) h d') for x in (q, k, v))
    out = self_attention(q_sequence, k, v, jnp.asarray(mask), None, 0.0)
    return einops.rearrange(out, 'b 1 (r n) h d -> b r n h d', r=q.shape[1])


def _spans(row: np.ndarray) -> tuple[Span, ...]:
    """Return the runs of neighbouring visible frames of one query frame."""
    edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
    return tuple((int(first), int(last)) for first, last in edges.reshape(-1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q: Array, k: Array, v: Array, spans: tuple[tuple[Span, ...], ...], implementation: str) -> Array:
    return _forward(q, k, v, spans, implementation)[0]


def _forward(
    q: Array, k: Array, v: Array, spans: tuple[tuple[Span, ...], ...], implementation: str
) -> tuple[Array, Kept]:
    del implementation
    parts = [
        dense_attention.forward(q[:, row], _visible_tokens(k, seen), _visible_tokens(v, seen))
        for row, seen in enumerate(spans)
    ]
    out, denominator = (jnp.stack(part, axis=1) for part in zip(*parts))
    out, denominator = checkpoint_name(out, OUTPUT), checkpoint_name(denominator, DENOMINATOR)
    return out, (q, k, v, out, denominator)


def _backward(
    spans: tuple[tuple[Span, ...], ...], implementation: str, kept: Kept, gradient: Array
) -> tuple[Array, Array, Array]:
    del implementation
    q, k, v, out, denominator = kept
    dk, dv, dqs = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32), []
    for row, seen in enumerate(spans):
        keys, values = _visible_tokens(k, seen), _visible_tokens(v, seen)
        results = (x[:, row] for x in (out, denominator, gradient))
        dq, of_keys, of_values = dense_attention.backward(q[:, row], keys, values, None, *results)
        dqs.append(dq)
        dk, dv = _add_to_frames(dk, of_keys, seen), _add_to_frames(dv, of_values, seen)
    return jnp.stack(dqs, axis=1), dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_forward, _backward)


def _visible_tokens(x: Array, spans: tuple[Span, ...]) -> Array:
    """Join the tokens of the visible frames: [B, S, N, H, d] to [B, K, H, d]."""
    frames = jnp.concatenate([x[:, first:last] for first, last in spans], axis=1)
    return einops.rearrange(frames, 'b s n h d -> b (s n) h d')


def _add_to_frames(total: Array, of_tokens: Array, spans: tuple[Span, ...]) -> Array:
    """Add [B, K, H, d] of the visible frames to [B, S, N, H, d]."""
    frames, start = einops.rearrange(of_tokens, 'b (s n) h d -> b s n h d', n=total.shape[2]), 0
    for first, last in spans:
        total = total.at[:, first:last].add(frames[:, start : start + last - first])
        start += last - first
    return total
