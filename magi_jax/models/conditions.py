"""What a video depends on besides its frames, as one struct for all systems. A system without a condition has None.

Dimension key: B clips, R rows (frames handed in), S tokens of a prompt, E width of a text state, L blocks, D width.
"""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


@flax.struct.dataclass
class TextStates:
    """Prompts as states of a frozen text encoder.

    Attributes:
      states: [B, S, E].
      mask: bool [B, S]; False = padding.
      keep: bool [B]; False = the clip has no text, and the model reads its learned null sequence.
    """

    states: Array
    mask: Array
    keep: Array


@flax.struct.dataclass
class TextKeys:
    """Prompts as the keys and values of every block, which sampling computes once for a video.

    Attributes:
      k: [B, L, S, D].
      v: [B, L, S, D].
      mask: bool [B, S]; False = padding.
    """

    k: Array
    v: Array
    mask: Array


@flax.struct.dataclass
class Conditions:
    """The conditions of B clips.

    Attributes:
      interval: frame interval in raw frames, int32 [B], at least 1.
      level: noise level of the observed frames, int32 [B, R].
      history: bool [B]; False = masked frames see only themselves. None = all True.
      text: prompts, or None for a model without text.
    """

    interval: Array
    level: Array | None = None
    history: Array | None = None
    text: TextStates | TextKeys | None = None

    def without_text(self) -> 'Conditions':
        """Return the conditions that guidance by text moves away from."""
        return self.replace(text=self.text.replace(keep=jnp.zeros_like(self.text.keep)))
