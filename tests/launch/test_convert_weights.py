"""launch.convert_weights, from a file to a folder that loads."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from safetensors.numpy import save_file

from launch import convert_weights
from magi_jax.config import ConfigError
from magi_jax.tokenizers.folder import load_tokenizer
from magi_jax.tokenizers.published import PUBLISHED
from tests.launch.commands import assert_one_line, module
from tests.launch.forked import run_forked
from tests.tokenizers import official


@pytest.fixture
def narrow(monkeypatch, tmp_path):
    """The published kinds at a width that tests can carry, and a file of weights for each of two."""
    for kind, (config, _) in official.SMALL.items():
        monkeypatch.setitem(PUBLISHED, kind, dataclasses.replace(PUBLISHED[kind], config=config))
    for kind in ('sd_vae', 'cosmos_cv4x8x8'):
        values = {name: weight.read() for name, weight in official.weights(kind).items()}
        save_file(values, tmp_path / f'{kind}.safetensors')
    return tmp_path


def _convert(folder, kind, out='out', **more):
    if not convert_weights.flags.FLAGS.is_parsed():
        convert_weights.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(kind=kind, source=str(folder / f'{kind}.safetensors'), out=str(folder / out), **more):
        convert_weights.main()
    return load_tokenizer(folder / out)


def test_folder_with_the_authors_scale(narrow, capsys):
    tokenizer = _convert(narrow, 'sd_vae')
    assert tokenizer.config == official.SMALL['sd_vae'][0]
    np.testing.assert_allclose(1 / np.asarray(tokenizer.latent_std), 0.18215, rtol=1e-6)
    kernel = tokenizer.params['encoder']['conv_in']['kernel']
    np.testing.assert_array_equal(
        kernel[1, 2, 0, 5], official.draw('encoder.conv_in.weight', (32, 3, 3, 3))[5, 0, 1, 2]
    )
    facts = json.loads((narrow / 'out' / 'statistics.json').read_text())
    assert facts['source_sha256'] == hashlib.sha256((narrow / 'sd_vae.safetensors').read_bytes()).hexdigest()
    assert facts['statistics'] == '0.18215, the scale of its authors' and facts['layout'] == 'diffusers'
    printed = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(tokenizer.params))
    assert f'diffusers layout, 248 keys used, {count:,} parameters' in printed


def test_folder_without_statistics_says_so(narrow, capsys):
    tokenizer = _convert(narrow, 'cosmos_cv4x8x8', dtype='bfloat16')
    assert tokenizer.config.dtype == 'bfloat16' and set(np.asarray(tokenizer.latent_std)) == {1}
    assert 'latent scale: not measured' in capsys.readouterr().out
    assert json.loads((narrow / 'out' / 'statistics.json').read_text())['statistics'] == 'not measured'


def test_an_existing_folder_is_kept(narrow):
    (narrow / 'out').mkdir()
    with pytest.raises(ConfigError, match='exists already'):
        _convert(narrow, 'sd_vae')


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, environment):
    flags = ['--kind=sd_vae', f'--source={tmp_path}/gone.safetensors', f'--out={tmp_path}/out']
    assert_one_line(run_forked([*module('launch.convert_weights'), *flags], environment), 'gone.safetensors')
    assert not (tmp_path / 'out').exists()
