"""The guards every test runs under: set here, before anything imports jax.

Nothing is cached on disk: what passes here was compiled by this run.
"""

import os

from tests.compilation import FAST_COMPILATION

# Eight devices, so that every mesh of a small slice can be laid out on a laptop. Subprocesses inherit all of this.
KEPT_FLAGS = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
os.environ['XLA_FLAGS'] = ' '.join([*KEPT_FLAGS, '--xla_force_host_platform_device_count=8', FAST_COMPILATION])
os.environ['JAX_PLATFORMS'] = 'cpu'  # also on machines that have an accelerator
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'  # [T] + [B, T] is a mistake until someone writes the axis
os.environ['MPLBACKEND'] = 'agg'


def pytest_collection_modifyitems(items: list) -> None:
    """The files that take longest come first, so that the workers end together."""
    items.sort(key=lambda item: not item.nodeid.startswith(('tests/test_readme', 'tests/launch')))
