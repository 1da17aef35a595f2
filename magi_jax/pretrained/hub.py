"""Folders by name: a local path, or a model repository of the Hugging Face Hub (`pip install 'magi_jax[hub]'`)."""

import importlib
import os
import re
import textwrap
from pathlib import Path
from types import ModuleType

from magi_jax.config import ConfigError

HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
FILES = ['*.json', '*.jsonl', '*.safetensors']  # and those in tokenizer/: a pattern's * matches slashes, too
# Packages whose errors are of the network, the name or the login; they share no base class.
CLIENT_PACKAGES = ('huggingface_hub', 'hf_xet', 'httpx', 'httpx2', 'httpcore', 'requests')
INSTALL = "pip install 'magi_jax[hub]'"


def find_folder(name: str | os.PathLike, revision: str | None = None) -> Path:
    """Return the local folder of a path or of a Hub name such as 'user/name', which is downloaded once.

    A name is a path when it, or its first part, is a local folder.

    Args:
      name: of the folder or repository.
      revision: branch, tag or commit of a Hub repository.

    Raises:
      ConfigError: the Hub cannot give the repository; the message tells why.
      FileNotFoundError: no such folder, and the name cannot be one of the Hub, or the Hub's client is not installed.
    """
    path, text = Path(name).expanduser(), str(name)
    if path.exists() or not HUB_NAME.fullmatch(text) or path.parent.exists():
        return path
    try:
        client = _client()
    except ModuleNotFoundError:
        raise FileNotFoundError(f'there is no folder {text}; to load it from the Hugging Face Hub: {INSTALL}') from None
    try:
        return Path(client.snapshot_download(text, revision=revision, allow_patterns=FILES))
    except Exception as error:
        if not _is_of_client(error):
            raise
        raise ConfigError(
            f'{text} is no folder here, and the Hugging Face Hub did not give it ({_first_line(error)}):'
            ' check name, network and login'
        ) from error


def push_folder(folder: str | os.PathLike, name: str, private: bool) -> str:
    """Upload a folder of `save_pretrained` to the Hub repository `name`, made if missing; return its address.

    Raises:
      ConfigError: the Hub's client is not installed, or the Hub refused; the message tells why.
    """
    try:
        client = _client()
    except ModuleNotFoundError:
        raise ConfigError(f'pushing to the Hugging Face Hub needs its client: {INSTALL}') from None
    try:
        address = client.create_repo(name, private=private, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=os.fspath(folder), commit_message='Weights from magi_jax')
    except Exception as error:
        if not _is_of_client(error):
            raise
        raise ConfigError(
            f'the Hugging Face Hub did not take {name} ({_first_line(error)}): check name, network and login'
        ) from error
    return str(address)


def _client() -> ModuleType:
    return importlib.import_module('huggingface_hub')


def _is_of_client(error: Exception) -> bool:
    package = type(error).__module__.split('.')[0]
    return package in CLIENT_PACKAGES or isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return textwrap.shorten((str(error).strip().splitlines() or [repr(error)])[0], 200, placeholder=' ...')
