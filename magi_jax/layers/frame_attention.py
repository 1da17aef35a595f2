"""Joint attention over space and time that is causal by frame: a token sees all tokens of the frames that its own sees.

Within one query frame attention is dense over the tokens of its visible key frames. So no implementation needs a mask
for each token, and frames that are not visible are neither read nor computed.

Dimension key: B clips, R query frames, S key frames, N tokens of a key frame, n tokens of a query frame, H heads,
d head width.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from magi_jax.layers import frame_attention_tpu, frame_attention_xla
from magi_jax.layers.self_attention import DENOMINATOR, OUTPUT, self_attention

Array = jax.Array
Kept = tuple[Array, ...]
Seen = frame_attention_xla.Seen
Implementation = Literal['xla', 'mosaic', 'interpret', 'cudnn']
SMALL = 2**18  # (query, key) pairs of a clip and head up to which one masked product beats a loop over frames

# Forward and backward pass of the implementations that are differentiated by hand.
PASSES: dict[str, tuple[Callable[..., Any], ...]] = {
    'xla': (frame_attention_xla.forward, frame_attention_xla.backward),
    'mosaic': (frame_attention_tpu.forward, frame_attention_tpu.backward),
    'interpret': tuple(
        functools.partial(kernel, interpret=True)
        for kernel in (frame_attention_tpu.forward, frame_attention_tpu.backward)
    ),
}


def frame_attention(q: Array, k: Array, v: Array, visible: np.ndarray, implementation: Implementation) -> Array:
    """Attend from every token of a query frame to all tokens of its visible key frames, with the softmax in float32.

    Args:
      q: queries [B, R, n, H, d].
      k: keys [B, S, N, H, d].
      v: values, same shape as the keys.
      visible: bool [R, S] of visible (query frame, key frame) pairs, at least one for each query frame.
      implementation: 'xla' runs on every device; 'mosaic' is a kernel for TPUs, and 'interpret' runs it slowly on any
        device, for tests; 'cudnn' is a kernel for GPUs that needs 16-bit floats.

    Returns:
      [B, R, n, H, d].
    """
    seen = tuple(tuple(np.flatnonzero(row).tolist()) for row in visible)
    if () in seen:
        raise ValueError(f'query frame {seen.index(())} sees no key frame: let each frame see itself')
    if implementation == 'xla' and q.shape[1] * q.shape[2] * k.shape[1] * k.shape[2] <= SMALL:
        return _attend_masked(q, k, v, visible)
    if implementation == 'cudnn':
        return _attend_cudnn(q, k, v, seen)
    return _attend(q, k, v, seen, implementation)


def _attend_masked(q: Array, k: Array, v: Array, visible: np.ndarray) -> Array:
    """Attend as `frame_attention` does, with one product over all frames and a mask for each token."""
    mask = np.kron(visible, np.ones((q.shape[2], k.shape[2]), bool))
    q_sequence, k, v = (einops.rearrange(x, 'b r n h d -> b 1 (r n) h d') for x in (q, k, v))
    out = self_attention(q_sequence, k, v, jnp.asarray(mask), None, 0.0)
    return einops.rearrange(out, 'b 1 (r n) h d -> b r n h d', r=q.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q: Array, k: Array, v: Array, seen: Seen, implementation: str) -> Array:
    return _forward(q, k, v, seen, implementation)[0]


def _forward(q: Array, k: Array, v: Array, seen: Seen, implementation: str) -> tuple[Array, Kept]:
    out, denominator = PASSES[implementation][0](q, k, v, seen)
    out, denominator = checkpoint_name(out, OUTPUT), checkpoint_name(denominator, DENOMINATOR)
    return out, (q, k, v, out, denominator)


def _backward(seen: Seen, implementation: str, kept: Kept, gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, denominator = kept
    return PASSES[implementation][1](q, k, v, seen, out, denominator, gradient)


_attend.defvjp(_forward, _backward)


def _attend_cudnn(q: Array, k: Array, v: Array, seen: Seen) -> Array:
    # A key frame sums the gradients of all query frames that see it. The casts make this sum one of float32 values.
    wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)

    def tokens(x: Array, frames: tuple[int, ...]) -> Array:
        return frame_attention_xla.join_tokens(x, frames).astype(q.dtype)

    parts = [
        jax.nn.dot_product_attention(q[:, row], tokens(wide_k, frames), tokens(wide_v, frames), implementation='cudnn')
        for row, frames in enumerate(seen)
    ]
    return jnp.stack(parts, axis=1)
