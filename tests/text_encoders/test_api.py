"""Encoders by name, and the description that keeps another encoder out of a run."""

import dataclasses
import sys

import numpy as np
import pytest

from magi_jax.config import ConfigError, TextConfig
from magi_jax.text_encoders import api

WORDS = TextConfig('words', 8, 32)


def test_an_encoder_of_a_config():
    encoder = api.open_encoder(WORDS)
    assert (encoder.name, encoder.length, encoder.width) == ('words', 8, 32)
    assert api.make_encoder('words', 8).width == TextConfig.width
    with pytest.raises(ConfigError, match='takes no prompts: train with a text encoder'):
        api.open_encoder(TextConfig())
    with pytest.raises(ConfigError, match='takes no system prompt: leave it out'):
        api.make_encoder('words', 8, 32, 'describe:')


def test_a_run_keeps_its_encoder(tmp_path):
    with pytest.raises(ConfigError, match='has no text_encoder.json: give the folder'):
        api.open_encoder(WORDS, tmp_path)
    description = api.describe(api.open_encoder(WORDS))
    for _ in range(2):
        api.keep_description(tmp_path, description)
    assert [path.name for path in tmp_path.iterdir()] == ['text_encoder.json']
    assert api.read_description(tmp_path) == description
    opened = api.open_encoder(WORDS, tmp_path)
    np.testing.assert_array_equal(opened.encode(['a disc'])[0], api.open_encoder(WORDS).encode(['a disc'])[0])
    with pytest.raises(ConfigError, match='length = 8, not 9: set config.text'):
        api.open_encoder(TextConfig('words', 9, 32), tmp_path)


@pytest.mark.parametrize('field', [field.name for field in dataclasses.fields(api.EncoderDescription)])
def test_every_difference_is_refused(tmp_path, field):
    description = api.describe(api.open_encoder(WORDS))
    other = dataclasses.replace(
        description, **{field: 'another' if isinstance(getattr(description, field), str) else 1}
    )
    api.keep_description(tmp_path, description)
    with pytest.raises(ConfigError, match=f'{field} = .*, not .*: set config.text'):
        api.keep_description(tmp_path, other)


def test_the_same_model_in_another_folder_is_no_difference():
    description = api.describe(api.open_encoder(WORDS))
    here, there = (dataclasses.replace(description, name=name) for name in ('/a/qwen', '~/b/qwen/'))
    api.require_same_encoder(here, there, 'text')
    assert api.short_name('Qwen/Qwen2-VL') == 'Qwen2-VL'


def test_a_language_model_needs_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ConfigError, match=r"'some/model' needs transformers and torch: pip install -e \.\[text\]"):
        api.make_encoder('some/model', 8)
