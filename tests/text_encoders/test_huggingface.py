"""Language models as text encoders: their own hidden states, without padding, system prompt and image half."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from magi_jax.config import ConfigError, TextConfig
from magi_jax.text_encoders import api, states
from magi_jax.text_encoders.api import make_encoder

transformers = pytest.importorskip('transformers', reason='needs transformers and torch: pip install -e .[text]')
pytest.importorskip('torch', reason='needs transformers and torch: pip install -e .[text]')

from tests.text_encoders import tiny_models  # noqa: E402, needs transformers
from tests.text_encoders.tiny_models import CAPTIONS  # noqa: E402

LENGTH = 40
SYSTEM = 'describe: the motion '


@pytest.fixture(scope='module', params=tiny_models.KINDS)
def tiny(request, tmp_path_factory):
    """Kind, folder and original model."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    return request.param, folder, tiny_models.save(request.param, folder)


def hidden_states(kind, model, text, most=LENGTH):
    """The last hidden states of the first tokens of a text alone, [tokens, E], by the model's own classes."""
    tokenizer = tiny_models.make_tokenizer(kind == 'bert')
    tokens = tokenizer(text, truncation=True, max_length=most, return_tensors='pt')['input_ids']
    if kind == 't5':
        output = model.get_encoder()(tokens).last_hidden_state
    else:
        output = model(tokens, output_hidden_states=True).hidden_states[-1]
    return output.detach().numpy()[0]


def test_states_are_those_of_the_model(tiny):
    kind, folder, model = tiny
    encoder = make_encoder(str(folder), LENGTH)
    assert encoder.width == tiny_models.WIDTH
    found, mask = encoder.encode(CAPTIONS)
    assert found.shape == (3, LENGTH, tiny_models.WIDTH) and found.dtype == np.float32
    for row, caption in enumerate(CAPTIONS):
        expected = hidden_states(kind, model, caption)
        assert mask[row].tolist() == [place < len(expected) for place in range(LENGTH)]
        np.testing.assert_allclose(found[row, : len(expected)], expected, rtol=1e-3, atol=1e-5)  # stored as float16
        assert not found[row, len(expected) :].any()


def test_a_system_prompt_is_read_but_not_returned(tiny):
    kind, folder, model = tiny
    found, mask = make_encoder(str(folder), LENGTH, system_prompt=SYSTEM).encode(CAPTIONS)
    plain = make_encoder(str(folder), LENGTH).encode(CAPTIONS)[0]
    for row, caption in enumerate(CAPTIONS):
        whole = hidden_states(kind, model, SYSTEM + caption)
        before = len(hidden_states(kind, model, SYSTEM.strip()))  # its last space belongs to the first word behind it
        count = len(whole) - before + (kind == 'bert')  # [SEP] is behind the caption
        assert mask[row].sum() == count
        np.testing.assert_allclose(found[row, :count], whole[-count:], rtol=1e-3, atol=1e-5)
        assert np.abs(found[row, :count] - plain[row, :count]).max() > 0.01


def test_long_texts_are_cut(tiny):
    """The model does not see what is cut, with a system prompt or without."""
    kind, folder, model = tiny
    found, mask = make_encoder(str(folder), 4).encode(CAPTIONS)
    assert mask.all() and found.shape[1] == 4
    for row, caption in enumerate(CAPTIONS):
        np.testing.assert_allclose(found[row], hidden_states(kind, model, caption, 4), rtol=1e-3, atol=1e-5)
    before = len(hidden_states(kind, model, SYSTEM))  # one more token than SYSTEM has before a word
    found, mask = make_encoder(str(folder), 4, system_prompt=SYSTEM).encode(CAPTIONS)
    assert mask.all()
    for row, caption in enumerate(CAPTIONS):
        whole = hidden_states(kind, model, SYSTEM + caption, 4 + before)
        start = len(hidden_states(kind, model, SYSTEM.strip())) - (kind == 'bert')
        np.testing.assert_allclose(found[row], whole[start : start + 4], rtol=1e-3, atol=1e-5)


def test_bfloat16_is_near(tiny):
    _, folder, _ = tiny
    exact, rough = (make_encoder(str(folder), LENGTH, dtype=dtype) for dtype in ('float32', 'bfloat16'))
    difference = np.abs(exact.encode(CAPTIONS)[0] - rough.encode(CAPTIONS)[0]).max()
    assert 1e-4 < difference < 0.1 and exact.fingerprint != rough.fingerprint


def test_fingerprint_is_of_weights_and_settings(tiny, tmp_path):
    kind, folder, _ = tiny
    moved = tmp_path / 'moved'
    shutil.copytree(folder, moved)
    first = make_encoder(str(folder), LENGTH)
    assert make_encoder(str(moved), LENGTH).fingerprint == first.fingerprint
    tiny_models.save(kind, tmp_path / 'other', seed=1)
    others = [make_encoder(str(tmp_path / 'other'), LENGTH), make_encoder(str(folder), LENGTH - 1)]
    others += [make_encoder(str(folder), LENGTH, system_prompt=SYSTEM), first]
    assert len({encoder.fingerprint for encoder in others}) == 4
    api.keep_description(tmp_path, api.describe(others[2]))
    text = TextConfig(str(folder), LENGTH, tiny_models.WIDTH)
    assert api.open_encoder(text, tmp_path).system_prompt == SYSTEM
    with pytest.raises(ConfigError, match='fingerprint = '):
        shutil.copytree(tmp_path / 'other', tmp_path / 'x' / folder.name)
        api.open_encoder(TextConfig(str(tmp_path / 'x' / folder.name), LENGTH, tiny_models.WIDTH), tmp_path)


def test_what_cannot_be_used_is_one_line(tiny, tmp_path):
    _, folder, _ = tiny
    with pytest.raises(ConfigError, match='width = 33, but states of .* have width 32: set that width'):
        make_encoder(str(folder), LENGTH, 33)
    with pytest.raises(ConfigError, match='has no words: give at least one'):
        make_encoder(str(folder), LENGTH, system_prompt=SYSTEM).encode(['a disc', ' '])
    with pytest.raises(ConfigError, match='cannot be opened .*: give a Hugging Face model'):
        make_encoder(str(tmp_path / 'nothing'), LENGTH)
    with pytest.raises(ConfigError, match='cannot be opened'):
        make_encoder(str(folder), LENGTH, device='cuda:99')


def test_missing_weights_are_refused(tiny, tmp_path):
    kind, folder, _ = tiny
    broken = tmp_path / 'broken'
    shutil.copytree(folder, broken)
    weights = load_file(broken / 'model.safetensors')
    ends = 'mlp.down_proj.weight', 'wo.weight', '0.output.dense.weight'
    name = next(name for name in weights if name.endswith(ends) and 'decoder' not in name)
    del weights[name]
    save_file(weights, broken / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ConfigError, match='has no weights .*: give a complete model'):
        make_encoder(str(broken), LENGTH)


def test_states_that_float16_cannot_hold_are_refused():
    with pytest.raises(ConfigError, match='not finite, or too large for float16'):
        states.finish(['a'], np.full((1, 1, 2), 1e6, np.float32), np.ones((1, 1), bool))
