"""The sizes of the clips that a model is built for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Sizes that data and tokenizer determine.

    Attributes:
      frames: T, latent frames of a training clip.
      rows: rows of tokens in a frame.
      columns: columns of tokens in a frame.
      token_width: C.
      intervals: number of frame intervals.
      noise_levels: number of noise levels of observed frames.
    """

    frames: int
    rows: int
    columns: int
    token_width: int
    intervals: int
    noise_levels: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns
