"""Shared weights: the same samples on another machine, and no file that was changed or belongs to another model."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from flax.traverse_util import flatten_dict

import magi_jax
from magi_jax.config import ConfigError, TokenizerConfig, override
from magi_jax.pretrained.folder import MANIFEST, _sha256
from magi_jax.tokenizers.api import fingerprint
from magi_jax.tokenizers.folder import load_tokenizer
from tests.pretrained.tiny_run import CONFIG, STEP, make_run

ROOT = Path(__file__).parents[2]
SAVED = ['config.json', 'model.safetensors', 'tokenizer/config.json', 'tokenizer/model.safetensors']
SAVED += ['tokenizer/statistics.json', 'metrics.jsonl']
FRAMES = 6  # the trained clips have 4: the window slides


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(EMA parameters, generator of the run, folder of its shared weights); the run's folder is gone."""
    root = tmp_path_factory.mktemp('pretrained')
    params = make_run(root / 'run')
    generator = magi_jax.load(root / 'run')
    generator.save_pretrained(root / 'shared')
    (root / 'run').rename(root / 'elsewhere')
    return params, generator, root / 'shared'


@pytest.fixture
def shared(made, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(made[2], tmp_path / 'copied'))


def _rehash(folder):
    """Make the manifest agree with changed files, as a careless tool would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest['sha256'] = {name: _sha256(folder / name) for name in manifest['sha256']}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _refused(folder, *words):
    with pytest.raises(ConfigError) as error:
        magi_jax.load(folder)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), error.value


OTHER_PROCESS = """
import sys, numpy as np, magi_jax
np.save(sys.argv[2], magi_jax.load(sys.argv[1]).sample(frames=6, num=2, seed=3))
"""


def test_another_process_without_the_run_samples_the_same_bits(made, shared, tmp_path):
    words = [sys.executable, '-c', OTHER_PROCESS, str(shared), str(tmp_path / 'video.npy')]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    video = made[1].sample(frames=FRAMES, num=2, seed=3)
    np.testing.assert_array_equal(np.load(tmp_path / 'video.npy'), video)
    assert video.std() > 10


def test_files_hold_float32_by_path_and_no_local_path(made):
    params, generator, folder = made
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()) == sorted(
        [*SAVED, MANIFEST, 'README.md']
    )
    arrays = safetensors.numpy.load_file(folder / 'model.safetensors')
    expected = flatten_dict(params, sep='/')
    assert arrays.keys() == expected.keys() and {array.dtype for array in arrays.values()} == {np.dtype('float32')}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])
    assert all('somebody' not in path.read_text() for path in folder.rglob('*') if path.suffix in ('.json', '.md'))
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob('*') if path.is_file())
    assert fingerprint(load_tokenizer(folder / 'tokenizer')) == fingerprint(generator.tokenizer)
    loaded = magi_jax.load(folder)
    assert loaded.config.model == CONFIG.model and loaded.step == STEP == made[1].step
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, generator.weights)


@pytest.mark.parametrize('name', SAVED)
def test_one_tampered_byte_is_refused(shared, name):
    content = bytearray((shared / name).read_bytes())
    content[len(content) // 2] ^= 1
    (shared / name).write_bytes(content)
    _refused(shared, f'{shared / name} differs from the saved file')


@pytest.mark.parametrize('name', [*SAVED, MANIFEST])
def test_a_missing_file_is_named(shared, name):
    (shared / name).unlink()
    _refused(shared, f'{shared / name} is missing')


@pytest.mark.parametrize(
    'text', ['', '{', '[]', '{"version": 1}', '{"version": 1, "sha256": {}, "facts": {"step": 1}}']
)
def test_a_damaged_manifest_is_named(shared, text):
    (shared / MANIFEST).write_text(text)
    _refused(shared, f'{shared / MANIFEST} is damaged')


def test_a_manifest_reaches_no_file_outside_the_folder(shared):
    manifest = json.loads((shared / MANIFEST).read_text())
    manifest['sha256']['../elsewhere'] = 'a'
    (shared / MANIFEST).write_text(json.dumps(manifest))
    _refused(shared, 'is damaged', '../elsewhere')


def test_a_later_version_is_refused(shared):
    manifest = json.loads((shared / MANIFEST).read_text())
    (shared / MANIFEST).write_text(json.dumps(manifest | {'version': 2}))
    _refused(shared, 'has version 2, not 1')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda arrays: arrays.pop('head/final/bias'), ['missing head/final/bias']),
        (lambda arrays: arrays.update(extra=np.zeros(3, np.float32)), ['unexpected extra']),
        (
            lambda a: a.update({'head/final/bias': a['head/final/bias'][1:]}),
            ['head/final/bias is F32 [23], not F32 [24]'],
        ),
        (lambda a: a.update({'head/final/bias': a['head/final/bias'].astype(np.float16)}), ['F16 [24], not F32 [24]']),
        (lambda arrays: arrays.clear(), ['missing', 'and', 'more']),
    ],
)
def test_arrays_of_another_model_are_named(shared, change, words):
    arrays = safetensors.numpy.load_file(shared / 'model.safetensors')
    change(arrays)
    safetensors.numpy.save_file(arrays, shared / 'model.safetensors')
    _rehash(shared)
    _refused(shared, 'does not hold the parameters of config.json', *words)


def test_a_file_that_is_no_safetensors_is_named(shared):
    (shared / 'model.safetensors').write_bytes(b'not weights at all')
    _rehash(shared)
    _refused(shared, 'model.safetensors is not a safetensors file')


def test_a_config_of_another_width_does_not_take_the_weights(shared):
    config = json.loads((shared / 'config.json').read_text())
    config['model']['width'] = 32
    (shared / 'config.json').write_text(json.dumps(config))
    _rehash(shared)
    _refused(shared, 'does not hold the parameters of config.json', '[16')


def test_a_training_run_is_not_overwritten(made, tmp_path):
    make_run(tmp_path / 'run')
    before = (tmp_path / 'run' / 'config.json').read_bytes()
    with pytest.raises(ConfigError, match='already holds another config.json'):
        made[1].save_pretrained(tmp_path / 'run')
    assert (tmp_path / 'run' / 'config.json').read_bytes() == before


def test_saving_loaded_weights_keeps_facts_and_other_files(made, shared):
    loaded = magi_jax.load(shared)
    (shared / '.gitattributes').write_text('kept')
    manifest = json.loads((shared / MANIFEST).read_text())
    loaded.with_sampler(override(loaded.config.sampler, ['temperature=0.5'])).save_pretrained(shared, name='copied')
    assert json.loads((shared / MANIFEST).read_text())['facts'] == manifest['facts']
    assert (shared / '.gitattributes').read_text() == 'kept'
    assert magi_jax.load(shared).config.sampler.temperature == 0.5


def test_a_save_that_was_killed_is_refused(shared):
    """The manifest goes first and comes last."""
    (shared / MANIFEST).unlink()
    _refused(shared, 'manifest.json is missing')


def test_a_run_without_a_tokenizer_folder_is_shared_without_one(tmp_path):
    config = dataclasses.replace(CONFIG, tokenizer=TokenizerConfig(kind='identity', channels=48, downsample=4))
    make_run(tmp_path / 'run', config)
    generator = magi_jax.load(tmp_path / 'run')
    generator.save_pretrained(tmp_path / 'shared')
    jax.tree.map(np.testing.assert_array_equal, magi_jax.load(tmp_path / 'shared').weights, generator.weights)
    assert not (tmp_path / 'shared' / 'tokenizer').exists()


def test_a_damaged_metrics_file_of_the_run_is_one_line(made, tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('not json\n')
    with pytest.raises(ConfigError, match='metrics.jsonl line'):
        dataclasses.replace(made[1], workdir=str(tmp_path)).save_pretrained(tmp_path / 'shared')


def test_home_is_expanded(made, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    made[1].save_pretrained('~/shared')
    assert magi_jax.load('~/shared').step == STEP and (tmp_path / 'shared').is_dir()


def test_a_generator_made_by_hand_has_nothing_to_save(made, tmp_path):
    with pytest.raises(ConfigError, match='magi_jax.load'):
        dataclasses.replace(made[1], params=None).save_pretrained(tmp_path)


def test_the_model_card_tells_the_facts_of_the_run(made, tmp_path):
    metrics = {'protocol': 'shapes_five_frame', 'frechet': {'mean': 12.5, 'draws': [1.0]}, 'run': {'workdir': '/x'}}
    (tmp_path / 'metrics.json').write_text(json.dumps(metrics))
    loaded = magi_jax.load(made[2])
    loaded.save_pretrained(tmp_path / 'card', name='user/tiny', license='Apache-2.0', metrics=tmp_path / 'metrics.json')
    _, header, text = (tmp_path / 'card' / 'README.md').read_text().split('---\n', 2)
    header = yaml.safe_load(header)
    assert header['library_name'] == 'magi_jax' and header['license'] == 'apache-2.0'
    assert {'video-generation', 'arxiv:2501.12389'} <= set(header['tags'])
    count = sum(leaf.size for leaf in jax.tree.leaves(made[0]))
    facts = [f'| parameters | {count:,} |', '| steps | 7 of', 'bouncing_objects/shapes', f'jax {jax.__version__}']
    facts += ['| last train/loss | 0.25 |', '## Results: shapes_five_frame', '| frechet.mean | 12.5 |']
    facts += ["magi_jax.load('user/tiny')", 'launch.sample --workdir user/tiny', '4 frames of 16x16']
    assert all(fact in text for fact in facts), text
    assert '/x' not in text and 'licence' not in text
    assert 'These weights have no stated licence' in (made[2] / 'README.md').read_text()
    (tmp_path / 'metrics.json').write_text('no json')
    with pytest.raises(ConfigError, match='metrics.json is not a metrics.json of launch.evaluate'):
        loaded.save_pretrained(tmp_path / 'card', metrics=tmp_path / 'metrics.json')
