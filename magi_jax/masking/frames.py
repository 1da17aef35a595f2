"""Which frames a frame may see in the temporal layers, as boolean [query row, key row] arrays (MAGI §4, Fig. 3).

Dimension key: T frames, R new rows, F cache slots.
"""

import jax
import jax.numpy as jnp
import numpy as np


def causal(frames: int) -> np.ndarray:
    """[T, T]: a frame sees itself and the frames before it (Masked Teacher Forcing; context frames)."""
    return np.tril(np.ones((frames, frames), bool))


def complete_teacher_forcing(frames: int) -> np.ndarray:
    """[2T, 2T]: rows 0..T-1 are the observed frames, rows T..2T-1 their masked copies.

    Observed frame i sees observed frames <= i and no masked one. Masked frame j sees the observed frames < j, strictly:
    observed frame j is its own target, and of the masked frames only itself.
    """
    observed = np.concatenate([causal(frames), np.zeros((frames, frames), bool)], axis=1)
    masked = np.concatenate([np.tril(np.ones((frames, frames), bool), k=-1), np.eye(frames, dtype=bool)], axis=1)
    return np.concatenate([observed, masked], axis=0)


def training_rows(frames: int, parts: int, observed: bool) -> np.ndarray:
    """int [R]: which rows of the [observed frames, masked frames] sequence a training pass holds, and in what order.

    Numbers 0..T'-1 are observed frames, T'..2T'-1 their masked copies, T' = T rounded up to a multiple of `parts`: the
    frames past T come after all others, so that none of these can see them.

    Args:
      frames: T.
      parts: of a sequence that is cut into equal parts: each holds the observed rows of its frames, then the masked
        ones, so that all parts have the same work. In one part the last observed row is left out: no row sees it.
      observed: False leaves only the masked rows (Masked Teacher Forcing).
    """
    frames = -(-frames // parts) * parts
    chunks = np.arange(frames).reshape(parts, -1)
    if not observed:
        return chunks.reshape(-1) + frames
    if parts == 1:
        return np.delete(np.arange(2 * frames), frames - 1)
    return np.concatenate([chunks, chunks + frames], axis=1).reshape(-1)


def without_history(visible: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`visible` [R, R] of `training_rows` [R], but masked frames see only themselves."""
    masked = rows >= rows.max() // 2 + 1
    return np.where(masked[:, None], rows[:, None] == rows[None], visible)


def cached_causal(rows: int, capacity: int, length: jax.Array) -> jax.Array:
    """[R, F + R]: new rows see the `length` filled cache slots, themselves and the new rows before them."""
    filled = jnp.broadcast_to(jnp.arange(capacity) < length, (rows, capacity))
    return jnp.concatenate([filled, jnp.asarray(causal(rows))], axis=1)
