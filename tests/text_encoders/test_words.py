"""The word encoder: fixed on every machine, words and places can be told apart."""

import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.data.builders import captions
from magi_jax.data.builders.drawing import PALETTE, SHAPES
from magi_jax.text_encoders.words import WordEncoder, split_words

ENCODER = WordEncoder(length=16, width=64)
FINGERPRINT = '89db12141de3d2e4bf4567f0a8a45bf40c1e955296f5e66d912301c9a7deaad8'
GOLDEN = [0, 0, 1, 1, 1, 1, -1, 0, 1, -1, 0, 1, -1, -1, -1, 0]


def test_it_is_the_same_on_every_machine():
    states, mask = ENCODER.encode(['a red disc moves'])
    assert states.shape == (1, 16, 64) and states.dtype == np.float32 and mask.dtype == bool
    assert states[0, 1, :16].tolist() == GOLDEN
    assert ENCODER.fingerprint == FINGERPRINT


def test_case_and_punctuation_do_not_matter():
    same = ['a red disc moves', 'A Red, DISC moves!']
    first, second = ENCODER.encode(same)[0]
    np.testing.assert_array_equal(first, second)
    assert split_words("It's a über-disc 3.") == ['it', 's', 'a', 'über', 'disc', '3']


def test_padding_is_zero_and_long_texts_are_cut():
    (states, cut), mask = ENCODER.encode(['two words', 'word ' * 40])
    assert mask.sum(1).tolist() == [2, 16] and mask[0, :2].all() and not states[2:].any() and cut.any(1).all()
    for prompt in ('', '  ', '?!'):
        with pytest.raises(ConfigError, match='has no words: give at least one'):
            ENCODER.encode(['good', prompt])


def test_a_linear_map_reads_words_and_places():
    """What a model has to find: which word stands at which place."""
    combinations = [captions.caption(*combination) for combination in captions.SEEN[::3]]
    states, mask = ENCODER.encode(combinations)
    vocabulary = sorted({word for caption in combinations for word in split_words(caption)})
    assert {*PALETTE, *SHAPES} <= set(vocabulary)
    words = [word for caption in combinations for word in split_words(caption)]
    places = [place for caption in combinations for place, _ in enumerate(split_words(caption))]
    for values, classes in ((words, vocabulary), (places, sorted(set(places)))):
        targets = np.array([[value == one for one in classes] for value in values], np.float64)
        solution = np.linalg.lstsq(states[mask], targets, rcond=None)[0]
        assert ((states[mask] @ solution).argmax(1) == targets.argmax(1)).all()


def test_settings_change_the_fingerprint():
    others = [WordEncoder(15, 64), WordEncoder(16, 63), ENCODER]
    assert len({encoder.fingerprint for encoder in others}) == 3
    assert WordEncoder(16, 64).fingerprint == ENCODER.fingerprint
