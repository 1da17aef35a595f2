"""The encoder 'words': a fixed vector for every word and for every position. It has no weights and needs no training.

State i is the sum of the vectors of word i and of position i. Entries of a vector are signs, taken from a hash of the
word, so the states are exactly the same on every machine. Vectors of different words are nearly orthogonal. Words that
a model never met in training have vectors without meaning for it.

Dimension key: P prompts, S states of a prompt, E width.
"""

import dataclasses
import functools
import hashlib
import re
from typing import ClassVar

import numpy as np

from magi_jax.text_encoders.states import finish

VERSION = 1


@dataclasses.dataclass(frozen=True)
class WordEncoder:
    """The encoder of states [P,S,E], as described in the module docstring.

    Attributes:
      length: S. Further words of a prompt are left out.
      width: E.
    """

    length: int
    width: int
    name: ClassVar[str] = 'words'
    system_prompt: ClassVar[str] = ''
    dtype: ClassVar[str] = 'float32'

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex. It changes with length, width and the vectors."""
        states, _ = self.encode(['a probe'])
        return hashlib.sha256(
            f'{self.name} {VERSION} {self.length} {self.width}'.encode() + states.tobytes()
        ).hexdigest()

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return states float32 [P,S,E] with entries -1, 0 and 1, and the mask bool [P,S] of the words.

        Raises:
          ConfigError: a prompt has no words.
        """
        states = np.zeros((len(prompts), self.length, self.width), np.float32)
        mask = np.zeros(states.shape[:2], bool)
        for row, prompt in enumerate(prompts):
            words = split_words(prompt)[: self.length]
            for place, word in enumerate(words):
                states[row, place] = (_signs('word', word, self.width) + _signs('position', str(place), self.width)) / 2
            mask[row, : len(words)] = True
        return finish(prompts, states, mask)


def split_words(prompt: str) -> list[str]:
    """Return the words of a prompt in lower case, without punctuation."""
    return re.findall(r'\w+', prompt.lower())


@functools.lru_cache(65_536)
def _signs(kind: str, text: str, width: int) -> np.ndarray:
    """Return the vector of a word or position: float32 [E] of -1 and 1."""
    data = hashlib.shake_256(f'{kind} {text}'.encode()).digest(-(-width // 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=width)
    return np.float32(2) * bits - np.float32(1)
