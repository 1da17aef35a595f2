"""Frame visibility in temporal attention, as boolean [query row, key row] arrays (MAGI §4, Fig. 3).

Dimension key: T frames, R new rows, F cache slots.
"""

import jax
import jax.numpy as jnp
import numpy as np

TARGET = 5  # folded into the key of a clip for its target frame


def causal(frames: int) -> np.ndarray:
    """Return bool [T, T]: a frame sees itself and the frames before it (masked teacher forcing; context frames)."""
    return np.tril(np.ones((frames, frames), bool))


def complete_teacher_forcing(frames: int) -> np.ndarray:
    """Return bool [2T, 2T]: rows 0..T-1 are the observed frames, rows T..2T-1 their masked copies.

    Observed frame i sees observed frames <= i and no masked frame. Masked frame j sees observed frames < j and itself.
    It must not see observed frame j, which is its target.
    """
    observed = np.concatenate([causal(frames), np.zeros((frames, frames), bool)], axis=1)
    masked = np.concatenate([np.tril(np.ones((frames, frames), bool), k=-1), np.eye(frames, dtype=bool)], axis=1)
    return np.concatenate([observed, masked], axis=0)


def training_rows(frames: int, parts: int, observed: bool) -> np.ndarray:
    """Return int [R]: the rows of the sequence [observed frames, masked frames] in a training pass, in their order.

    Numbers 0..T'-1 are observed frames and T'..2T'-1 their masked copies, with T' = T rounded up to a multiple of
    `parts`. Padding frames come last, so no real frame sees them.

    Args:
      frames: T.
      parts: number of equal parts that devices share. Each part holds the observed rows of its frames, then their
        masked rows, so all parts have the same work. With one part the last observed row is left out: no row sees it.
      observed: False keeps only the masked rows (masked teacher forcing).
    """
    frames = -(-frames // parts) * parts
    chunks = np.arange(frames).reshape(parts, -1)
    if not observed:
        return chunks.reshape(-1) + frames
    if parts == 1:
        return np.delete(np.arange(2 * frames), frames - 1)
    return np.concatenate([chunks, chunks + frames], axis=1).reshape(-1)


def without_history(visible: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Restrict `visible` [R, R] of `training_rows` [R] so that masked frames see only themselves."""
    masked = rows >= rows.max() // 2 + 1
    return np.where(masked[:, None], rows[:, None] == rows[None], visible)


def draw_target(key: jax.Array, first: int, frames: int) -> jax.Array:
    """Draw the target frame of a clip, int32 scalar, uniform on first..frames-1 (VideoMAR)."""
    return jax.random.randint(jax.random.fold_in(key, TARGET), (), first, frames)


def hide_after_target(mask: jax.Array, target: jax.Array) -> jax.Array:
    """Make the masks bool [B, T, N] those of a single sequence: complete frames, the target frame, hidden frames.

    Hidden frames only keep shapes static: no frame sees a later one.
    """
    number = jnp.arange(mask.shape[1])[None, :, None]
    target = target[:, None, None]
    return (number > target) | (mask & (number == target))


def cached_causal(rows: int, capacity: int, length: jax.Array) -> jax.Array:
    """Return bool [R, F + R]: new rows see the `length` filled cache slots, themselves and earlier new rows."""
    filled = jnp.broadcast_to(jnp.arange(capacity) < length, (rows, capacity))
    return jnp.concatenate([filled, jnp.asarray(causal(rows))], axis=1)
