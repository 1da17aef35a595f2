"""Folders by name: a local path, or a model repository of the Hugging Face Hub (`pip install 'magi_jax[hub]'`)."""

import importlib
import os
import re
import textwrap
from pathlib import Path
from types import ModuleType

from magi_jax.config import ConfigError

HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
FILES = ['*.json', '*.jsonl', '*.safetensors']  # also those in tokenizer/, because * matches slashes
# Packages that raise errors of network, name or login; these errors have no common base class.
CLIENT_PACKAGES = ('huggingface_hub', 'hf_xet', 'httpx', 'httpx2', 'httpcore', 'requests')
INSTALL = "pip install 'magi_jax[hub]'"


def find_folder(name: str | os.PathLike, revision: str | None = None) -> Path:
    """Return the local folder of a path or of a Hub name such as 'user/name', which is downloaded once.

    A name is a local path if it exists, or if its parent folder exists.

    Args:
      name: path of the folder or name of the repository.
      revision: branch, tag or commit of a Hub repository.

    Raises:
      ConfigError: the download failed; the message says why.
      FileNotFoundError: there is no such folder, and the name is not a Hub name or the Hub client is not installed.
    """
    path, text = Path(name).expanduser(), str(name)
    if path.exists() or not HUB_NAME.fullmatch(text) or path.parent.exists():
        return path
    try:
        client = _client()
    except ModuleNotFoundError:
        raise FileNotFoundError(f'there is no folder {text}: to download it from the Hub, run {INSTALL}') from None
    try:
        return Path(client.snapshot_download(text, revision=revision, allow_patterns=FILES))
    except Exception as error:
        if not _is_of_client(error):
            raise
        raise ConfigError(
            f'there is no folder {text}, and its download from the Hugging Face Hub failed'
            f' ({_first_line(error)}): check name, network and login'
        ) from error


def push_folder(folder: str | os.PathLike, name: str, private: bool) -> str:
    """Push a folder of `save_pretrained` to the Hub repository `name`. Return its address.

    The repository is created if it is missing.

    Raises:
      ConfigError: the Hub client is not installed, or the upload failed; the message says why.
    """
    try:
        client = _client()
    except ModuleNotFoundError:
        raise ConfigError(f'the client of the Hugging Face Hub is not installed: run {INSTALL}') from None
    try:
        address = client.create_repo(name, private=private, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=os.fspath(folder), commit_message='Weights from magi_jax')
    except Exception as error:
        if not _is_of_client(error):
            raise
        raise ConfigError(
            f'uploading {name} to the Hugging Face Hub failed ({_first_line(error)}): check name, network and login'
        ) from error
    return str(address)


def _client() -> ModuleType:
    return importlib.import_module('huggingface_hub')


def _is_of_client(error: Exception) -> bool:
    package = type(error).__module__.split('.')[0]
    return package in CLIENT_PACKAGES or isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return textwrap.shorten((str(error).strip().splitlines() or [repr(error)])[0], 200, placeholder=' ...')
