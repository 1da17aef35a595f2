"""Random token masks for training and reveal counts for sampling (the rules of MAR).

Dimension key: B clips, T frames, N tokens of a frame, K mask steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.config import MaskingConfig


def mask_ratio(uniform: jax.Array, config: MaskingConfig) -> jax.Array:
    """Map `uniform` in [0, 1), any shape, to ratios ~ Normal(mean, std) truncated to [min, max], by inverse CDF."""
    cdf = jax.scipy.stats.norm.cdf
    low = cdf((config.ratio_min - config.ratio_mean) / config.ratio_std)
    high = cdf((config.ratio_max - config.ratio_mean) / config.ratio_std)
    standard = jax.scipy.stats.norm.ppf(low + uniform * (high - low))
    return jnp.clip(config.ratio_mean + config.ratio_std * standard, config.ratio_min, config.ratio_max)


def random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return int32 `shape`: the rank of each token in a uniform random order along the last axis."""
    order = jnp.argsort(jax.random.uniform(key, shape), axis=-1)
    return jnp.argsort(order, axis=-1)


def draw_masks(key: jax.Array, clip_keys: jax.Array, frames: int, tokens: int, config: MaskingConfig) -> jax.Array:
    """Draw masks bool [B, T, N], True = hidden, with ceil(N * ratio) random tokens hidden in each frame.

    Args:
      key: key of this step, for a ratio that the whole batch shares (`draw_per = 'batch'`).
      clip_keys: [B] keys, one for each clip.
      frames: T.
      tokens: N.
      config: `draw_per` selects ratio and order per frame, ratio and order per clip, or (MAR) one ratio per batch with
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
    """Return int [K]: tokens still hidden after each mask step, floor(N cos(pi/2 (s+1)/K)) (MAR).

    Every step reveals at least one token and leaves at least one, as long as there are any. The last step leaves none.
    """
    counts, remaining = [], tokens
    for step in range(steps):
        wanted = int(np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps)))
        remaining = 0 if step == steps - 1 else max(1, min(remaining - 1, wanted))
        counts.append(remaining)
    return np.array(counts)


def reveal_counts(tokens: int, steps: int) -> np.ndarray:
    """Return int [K]: tokens revealed by each mask step. They sum to N; late steps reveal none if K > N."""
    masked = masked_counts(tokens, steps)
    return -np.diff(np.concatenate([[tokens], masked]))
