import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import TokenizerConfig
from magi_jax.tokenizers.api import create_tokenizer, fingerprint
from magi_jax.tokenizers.folder import load_tokenizer, save_tokenizer

PROVENANCE = {'clips': 17, 'dataset': 'noise', 'split': 'train', 'seed': 3}


@pytest.fixture
def saved(tmp_path):
    tokenizer = create_tokenizer(TokenizerConfig(channels=3, width=6), jax.random.key(0), 16, 16)
    tokenizer = tokenizer.replace(latent_mean=jnp.array([0.1, 0.2, 0.3]), latent_std=jnp.array([0.7, 1.1, 1.3]))
    save_tokenizer(tokenizer, tmp_path / 'deep' / 'tokenizer', PROVENANCE)
    return tokenizer, tmp_path / 'deep' / 'tokenizer'


def test_load_returns_what_was_saved(saved):
    tokenizer, folder = saved
    loaded = load_tokenizer(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded, tokenizer)
    assert jax.tree.structure(loaded) == jax.tree.structure(tokenizer)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    assert json.loads((folder / 'statistics.json').read_text()).items() >= PROVENANCE.items()


def test_identity_without_parameters_survives(tmp_path):
    tokenizer = create_tokenizer(TokenizerConfig(kind='identity', channels=12, downsample=2), jax.random.key(0), 8, 8)
    save_tokenizer(tokenizer, tmp_path / 'tokenizer', {})
    assert fingerprint(load_tokenizer(tmp_path / 'tokenizer')) == fingerprint(tokenizer)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(saved):
    tokenizer, folder = saved
    newer = tokenizer.replace(latent_mean=tokenizer.latent_mean + 1)
    save_tokenizer(newer, folder, PROVENANCE)
    assert fingerprint(load_tokenizer(folder)) == fingerprint(newer)
    assert [path.name for path in folder.parent.iterdir()] == ['tokenizer']


@pytest.mark.parametrize('name', ['config.json', 'params.npz', 'statistics.json'])
def test_a_damaged_file_is_named(saved, name):
    path = saved[1] / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f'{name} is damaged') as error:
        load_tokenizer(saved[1])
    assert '\n' not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
        load_tokenizer(saved[1])


EDITS = [('config.json', '"width": 6', '"width": 8'), ('statistics.json', '17', '18')]


@pytest.mark.parametrize(('name', 'old', 'new'), EDITS)
def test_an_edited_file_is_named(saved, name, old, new):
    path = saved[1] / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f'{name} is damaged'):
        load_tokenizer(saved[1])


def test_a_failed_save_leaves_the_old_folder(saved):
    tokenizer, folder = saved
    with pytest.raises(TypeError):
        save_tokenizer(tokenizer, folder, {'seed': object()})
    assert fingerprint(load_tokenizer(folder)) == fingerprint(tokenizer)
    assert [path.name for path in folder.parent.iterdir()] == ['tokenizer']
