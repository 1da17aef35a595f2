"""The shipped config files by name: in configs/ of a checkout, in magi_jax/configs/ of an installed package.

A config file that builds on another one imports it by name, so that copies of it work in any folder:

    quickstart = import_config('quickstart')
"""

import importlib.util
import types
from pathlib import Path

from magi_jax.config import ConfigError

_PACKAGE = Path(__file__).parent
SHIPPED = next((folder for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs') if folder.is_dir()), None)


def shipped_names() -> list[str]:
    """Return the names of the shipped config files, sorted."""
    return sorted(path.stem for path in SHIPPED.glob('*.py') if path.stem != '__init__') if SHIPPED else []


def find_config_file(name: str) -> Path:
    """Return the path of a config file.

    Args:
      name: path of a config file; if there is no such file, name of a shipped one: 'quickstart' or
        'configs/quickstart.py'.

    Raises:
      ConfigError: the file does not exist (the message lists the shipped ones), or it does not define `get_config`.
    """
    path = Path(name).expanduser()
    is_shipped = path.stem in shipped_names() and path.suffix in ('', '.py') and str(path.parent) in ('.', 'configs')
    if path.is_file() and (path.suffix or not is_shipped):
        if 'get_config' not in path.read_text(errors='replace'):
            raise ConfigError(f'{name} is not a config file: define get_config(variants) in it, as {SHIPPED}/*.py do')
        return path
    if is_shipped:
        return SHIPPED / f'{path.stem}.py'
    raise ConfigError(f'there is no config file {name!r}: give a path, or one of {", ".join(shipped_names())}')


def import_config(name: str) -> types.ModuleType:
    """Execute a config file and return its module. Raise ConfigError as `find_config_file` does."""
    path = find_config_file(name)
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
