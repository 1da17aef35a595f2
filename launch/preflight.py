"""Checks everything that a pod run needs before it starts: one line each, `ok` or `FAILED` with a remedy.

python -m launch.preflight --config configs/quickstart.py:runlocal --workdir runs/mine [--config.mesh.fsdp=4]

Run it like the training: on every host, with the same config and work folder. Exit status 1 if a check failed.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from magi_jax.config import ConfigError

from . import console, distributed
from .config_flag import define_config
from .preflight_checks import CHECKS, PROBE_FOLDER, Check, PreflightContext, gather_text

CONFIG = define_config()
WORKDIR = console.define_path('workdir', None, 'folder that the run will use, seen by every host')
REQUIREMENTS = console.define_path(
    'requirements', str(Path(__file__).parents[1] / 'requirements.txt'), 'the pinned versions'
)
STEP = flags.DEFINE_enum('step', 'auto', ['auto', 'always', 'never'], 'run optimizer steps; auto: only a small model')
TIMEOUT = flags.DEFINE_float('timeout', 600, 'seconds that a check may take', lower_bound=0.001)


def run_checks(checks: tuple[Check, ...], facts: PreflightContext, timeout: float) -> Iterator[tuple[str, str, str]]:
    """Yield (status, name, text) of each check: 'ok', 'FAILED' on any host, or 'skipped' if an earlier one failed.

    All hosts run the same sequence. After each check they exchange its status, so no host waits in a collective for a
    host that gave up.
    """
    unmet: set[str] = set()
    for check in checks:
        if missing := [name for name in check.needs if name in unmet]:
            unmet.add(check.name)
            yield 'skipped', check.name, f'needs {", ".join(missing)}'
            continue
        watchdog = threading.Timer(timeout, _exit_on_timeout, (check.name, timeout))
        watchdog.daemon = True
        watchdog.start()
        try:
            found, error = _run_check(check, facts)
            errors = {number: text for number, text in enumerate(gather_text(error)) if text}
        finally:
            watchdog.cancel()
        if errors:
            unmet.add(check.name)
            host, text = next(iter(errors.items()))
            where = f'on {len(errors)} host(s), host {host}: ' if jax.process_count() > 1 else ''
            yield 'FAILED', check.name, where + text
        else:
            yield 'ok', check.name, found


def _run_check(check: Check, facts: PreflightContext) -> tuple[str, str]:
    """Run a check; return what it found and why it failed, one of them empty."""
    try:
        return check.run(facts), ''
    except (*console.EXPECTED, RuntimeError, ValueError) as failure:
        return '', _sentence(failure)


def _sentence(failure: Exception) -> str:
    if console.is_disk_full(failure):
        return console.DISK_FULL
    return ' '.join(str(failure).split()) or repr(failure)


def _exit_on_timeout(name: str, seconds: float) -> None:
    """Exit the process, because a thread that waits in a collective cannot be stopped."""
    reason = f'not done after {seconds:g} s: a host did not start, a link is down, or --timeout is too short'
    print(_line('FAILED', name, reason), flush=True)
    os._exit(1)


def _line(status: str, name: str, text: str) -> str:
    return f'{status:<8} {name:<12} {text}'


def main() -> int:
    """Return 0 if every check passed, else 1; the first process prints."""
    requirements = Path(REQUIREMENTS.value)
    if not requirements.is_file():  # it lies in a checkout, not in an installed package
        raise ConfigError(f'{requirements} is missing: give --requirements FILE, from which all hosts were installed')
    facts = PreflightContext(console.read_config(CONFIG), Path(WORKDIR.value), requirements, STEP.value)
    failed = 0
    for status, name, text in run_checks(CHECKS, facts, TIMEOUT.value):
        failed += status == 'FAILED'
        if jax.process_index() == 0:
            print(_line(status, name, text), flush=True)
    if jax.process_index() == 0:
        shutil.rmtree(facts.workdir / PROBE_FOLDER, ignore_errors=True)
        print(f'{failed} check(s) failed' if failed else 'ready')
    return int(failed > 0)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main, distributed.session())
