"""Weights by name from the Hugging Face Hub, without a network: a stand-in for its client, and the client's cache."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

import magi_jax
from magi_jax.config import ConfigError
from magi_jax.pretrained.hub import find_folder
from tests.pretrained.tiny_run import CONFIG, make_run

COMMIT = 'a' * 40


@pytest.fixture(scope='module')
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub') / 'run'
    make_run(folder)
    return magi_jax.load(folder)


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A module that keeps repositories in tmp_path/hub and notes each call."""

    def create_repo(name, private, exist_ok):
        (tmp_path / 'hub' / name).mkdir(parents=True, exist_ok=exist_ok)
        module.calls.append(('create_repo', private))
        return f'https://hub/{name}'

    def upload_folder(repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, tmp_path / 'hub' / repo_id, dirs_exist_ok=True)
        module.calls.append(('upload_folder', repo_id))

    def snapshot_download(name, revision, allow_patterns):
        module.calls.append(('snapshot_download', revision))
        if not (tmp_path / 'hub' / name).exists():
            raise OSError('404 Client Error\nRepository Not Found')
        return str(tmp_path / 'hub' / name)

    module = types.ModuleType('huggingface_hub')
    module.create_repo, module.upload_folder, module.snapshot_download = create_repo, upload_folder, snapshot_download
    module.calls = []
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.fixture
def no_client(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.chdir(tmp_path)


def test_what_is_pushed_is_loaded_by_name(generator, client, tmp_path):
    assert generator.push_to_hub('user/tiny', private=True, license='mit') == 'https://hub/user/tiny'
    loaded = magi_jax.load('user/tiny', revision='main')
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, generator.weights)
    assert client.calls == [('create_repo', True), ('upload_folder', 'user/tiny'), ('snapshot_download', 'main')]
    card = (tmp_path / 'hub' / 'user' / 'tiny' / 'README.md').read_text()
    assert 'license: "mit"' in card and '# user/tiny' in card


def test_what_the_hub_answers_is_one_line(generator, client, monkeypatch):
    with pytest.raises(ConfigError) as error:
        magi_jax.load('user/missing')
    assert 'there is no folder user/missing' in str(error.value) and '404 Client Error' in str(error.value)
    assert '\n' not in str(error.value)

    def refuse(*_, **__):
        raise OSError('401 Unauthorized\nlog in')

    monkeypatch.setattr(client, 'upload_folder', refuse)
    with pytest.raises(ConfigError, match='uploading user/tiny to the Hugging Face Hub failed .401 Unauthorized.'):
        generator.push_to_hub('user/tiny')


def test_a_mistyped_path_does_not_ask_the_hub(client, tmp_path):
    """Its first part is a folder here, or it is no name of the Hub."""
    (tmp_path / 'runs').mkdir()
    for name in ('runs/mistyped', '/nowhere/run', './runs', 'one', 'a/b/c', '../user/tiny'):
        with pytest.raises(FileNotFoundError, match='holds no run'):
            magi_jax.load(name)
    assert client.calls == []


def test_without_the_client_the_message_names_it(generator, no_client):
    with pytest.raises(FileNotFoundError, match=r"no folder user/tiny.*pip install 'magi_jax\[hub\]'"):
        magi_jax.load('user/tiny')
    with pytest.raises(ConfigError, match=r"pip install 'magi_jax\[hub\]'"):
        generator.push_to_hub('user/tiny')


def test_the_real_client_finds_weights_in_its_cache(generator, monkeypatch, tmp_path):
    """A repository as an earlier download left it: links from a snapshot to blobs named by their hash."""
    constants = pytest.importorskip('huggingface_hub.constants', reason='the hub extra is not installed')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    generator.save_pretrained(tmp_path / 'shared')
    repository = tmp_path / 'cache' / 'models--user--tiny'
    snapshot = repository / 'snapshots' / COMMIT
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(COMMIT)
    for number, path in enumerate(path for path in (tmp_path / 'shared').rglob('*') if path.is_file()):
        blob, link = repository / 'blobs' / str(number), snapshot / path.relative_to(tmp_path / 'shared')
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    loaded = magi_jax.load('user/tiny')
    assert loaded.workdir == str(snapshot) and loaded.config.model == CONFIG.model
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, generator.weights)
    with pytest.raises(ConfigError) as error:
        magi_jax.load('user/unknown')
    assert 'there is no folder user/unknown' in str(error.value) and '\n' not in str(error.value)
    print(error.value)


def test_the_real_client_without_a_network_is_one_line(generator, monkeypatch, tmp_path):
    constants = pytest.importorskip('huggingface_hub.constants', reason='the hub extra is not installed')
    hf_api = pytest.importorskip('huggingface_hub.hf_api', reason='the hub extra is not installed')
    nowhere = 'http://127.0.0.1:9'  # nobody listens there
    monkeypatch.setattr(constants, 'ENDPOINT', nowhere)
    monkeypatch.setattr(hf_api.api, 'endpoint', nowhere)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('HF_TOKEN', 'hf_none')
    monkeypatch.chdir(tmp_path)
    for call in (magi_jax.load, generator.push_to_hub):
        with pytest.raises(ConfigError, match='user/tiny.*refused.*: check name, network and login') as error:
            call('user/tiny')
        assert '\n' not in str(error.value)


def test_patterns_cover_every_file_that_is_read(generator, tmp_path):
    """fnmatch, as the client does it: * matches slashes."""
    import fnmatch

    from magi_jax.pretrained.hub import FILES

    generator.save_pretrained(tmp_path / 'shared')
    manifest = json.loads((tmp_path / 'shared' / 'manifest.json').read_text())
    for name in [*manifest['sha256'], 'manifest.json']:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in FILES), name


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'user' / 'tiny').mkdir(parents=True)
    assert find_folder('user/tiny').is_dir()
