"""What all encoders do with their states: check them, clear the padding, and round them as they are stored.

Dimension key: P prompts, S states of a prompt, E width.
"""

import numpy as np

from magi_jax.config import ConfigError

STORED_DTYPE = np.float16


def finish(prompts: list[str], states: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return states float32 [P,S,E] and their mask bool [P,S], as an encoder returns them.

    States are rounded to float16, the precision in which launch.encode_text stores them. Training and sampling then get
    the same states for the same prompt. Padding is zero.

    Raises:
      ConfigError: a prompt has no words, or its states are not finite in float16.
    """
    for prompt, positions in zip(prompts, mask, strict=True):
        if not prompt.strip() or not positions.any():
            raise ConfigError(f'the text {prompt!r} has no words: give at least one')
    with np.errstate(over='ignore'):
        rounded = (states * mask[..., None]).astype(STORED_DTYPE).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ConfigError('states of the text encoder are not finite, or too large for float16: choose another encoder')
    return rounded, mask
