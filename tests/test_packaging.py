"""What pyproject.toml promises: the package that is installed, and the versions that it needs."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
TOPS = 'magi_jax', 'launch', 'configs'


def pin_differences(requirements, bounds):
    """Requirements of pyproject.toml that the version pinned in requirements.txt does not meet, or that has no pin."""
    pins = dict(re.findall(r'^([\w.-]+)==([\w.]+)', requirements, re.M))
    unmet = [one for one in map(Requirement, bounds) if not one.specifier.contains(pins.get(one.name, ''))]
    return [f'{one}, pinned {pins.get(one.name)}' for one in unmet]


def packages_on_disk():
    """Names under which the folders of Python files are to be installed."""
    folders = {path.parent.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob('*.py')}
    names = {folder.as_posix().replace('/', '.') for folder in folders}
    return {name if name.startswith('magi_jax') else f'magi_jax.{name}' for name in names}


def test_pinned_versions_meet_the_bounds():
    extras = PROJECT['project']['optional-dependencies']
    bounds = PROJECT['project']['dependencies'] + PROJECT['build-system']['requires']
    bounds += extras['tpu'] + extras['gpu'] + extras['test']
    assert pin_differences((ROOT / 'requirements.txt').read_text(), bounds) == []


def test_every_folder_of_python_files_is_a_package_of_pyproject():
    assert sorted(PROJECT['tool']['setuptools']['packages']) == sorted(packages_on_disk())


def test_pin_rule_complains():
    requirements = 'jax==0.10.2  # why\nnumpy==2.4.6\n'
    assert pin_differences(requirements, ['jax[tpu]>=0.9,<0.12', 'numpy>=2.4.6']) == []
    assert pin_differences(requirements, ['numpy>=2.5.0', 'rich>=1.0', 'jax<0.10']) == [
        'numpy>=2.5.0, pinned 2.4.6',
        'rich>=1.0, pinned None',
        'jax<0.10, pinned 0.10.2',
    ]
