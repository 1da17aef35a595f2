"""Which tokens of a frame are hidden in training, and in which order they are revealed in sampling (MAR's rules).

Dimension key: B clips, T frames, N tokens of a frame, K mask steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import MaskingConfig


def mask_ratio(uniform: jax.Array, config: MaskingConfig) -> jax.Array:
    """uniform in [0, 1) -> ratio ~ Normal(mean, std) truncated to [min, max], by the inverse CDF; any shape."""
    cdf = jax.scipy.stats.norm.cdf
    low = cdf((config.ratio_min - config.ratio_mean) / config.ratio_std)
    high = cdf((config.ratio_max - config.ratio_mean) / config.ratio_std)
    standard = jax.scipy.stats.norm.ppf(low + uniform * (high - low))
    return jnp.clip(config.ratio_mean + config.ratio_std * standard, config.ratio_min, config.ratio_max)


def random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """int32 `shape`: along the last axis, each token's place in a uniform random order."""
    order = jnp.argsort(jax.random.uniform(key, shape), axis=-1)
    return jnp.argsort(order, axis=-1)


def draw_masks(key: jax.Array, clip_keys: jax.Array, frames: int, tokens: int, config: MaskingConfig) -> jax.Array:
    """bool [B, T, N], True = hidden: ceil(N * ratio) tokens of each frame, in a uniform random order.

    Args:
      key: one key of this step, for what the whole batch shares (`draw_per = 'batch'`).
      clip_keys: [B] keys, one a clip.
      frames: T.
      tokens: N.
      config: `draw_per` says whether ratio and order are drawn per frame, per clip, or (MAR) one ratio per batch with
        an order per clip and frame (A7).
    """
    batch_uniform = jax.random.uniform(key)

    def clip_mask(clip_key: jax.Array) -> jax.Array:
        ratio_key, order_key = jax.random.split(clip_key)
        drawn = 1 if config.draw_per == 'clip' else frames
        uniform = jnp.broadcast_to(batch_uniform, (drawn,)) if config.draw_per == 'batch' else None
        uniform = jax.random.uniform(ratio_key, (drawn,)) if uniform is None else uniform
        hidden = jnp.ceil(tokens * mask_ratio(uniform, config))
        mask = random_ranks(order_key, (drawn, tokens)) < hidden[:, None]
        return jnp.broadcast_to(mask, (frames, tokens))

    return jax.vmap(clip_mask)(clip_keys)


def masked_counts(tokens: int, steps: int) -> np.ndarray:
    """int [K]: tokens still hidden after each mask step, floor(N cos(pi/2 (s+1)/K)) (MAR).

    Every step reveals at least one and leaves at least one while it can; the last step leaves none.
    """
    counts, remaining = [], tokens
    for step in range(steps):
        wanted = int(np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps)))
        remaining = 0 if step == steps - 1 else max(1, min(remaining - 1, wanted))
        counts.append(remaining)
    return np.array(counts)


def reveal_counts(tokens: int, steps: int) -> np.ndarray:
    """int [K]: tokens revealed by each mask step; sums to N; 0 in steps that have none left to give (K > N)."""
    masked = masked_counts(tokens, steps)
    return -np.diff(np.concatenate([[tokens], masked]))
