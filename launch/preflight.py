"""Checks everything that a run on a pod needs. Each check prints one line: `ok`, or `FAILED` with a remedy.

python -m launch.preflight --config configs/quickstart.py:runlocal --workdir runs/mine [--config.mesh.fsdp=4]

Run it before the training, in the same way: on every host, with the same config and work folder. The exit status is 1
if a check failed. `--stage N` checks a stage of a config with stages; the default is the last.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from magi_jax.config import ConfigError, select_stage

from . import console, distributed
from .config_flag import define_config, define_stage
from .preflight_checks import CHECKS, PROBE_FOLDER, Check, PreflightContext, gather_text

CONFIG, STAGE = define_config(), define_stage()
WORKDIR = console.define_path('workdir', None, 'work folder of the run, shared by all hosts')
REQUIREMENTS = console.define_path(
    'requirements', str(Path(__file__).parents[1] / 'requirements.txt'), 'requirements file with the pinned versions'
)
STEP = flags.DEFINE_enum(
    'step', 'auto', ['auto', 'always', 'never'], 'whether to run optimizer steps; auto: only for a small model'
)
TIMEOUT = flags.DEFINE_float('timeout', 600, 'time limit of each check, in seconds', lower_bound=0.001)


def run_checks(checks: tuple[Check, ...], context: PreflightContext, timeout: float) -> Iterator[tuple[str, str, str]]:
    """Yield (status, name, text) of each check: 'ok', 'FAILED' (on any host) or 'skipped' (it needs a failed check).

    All hosts run the same sequence and exchange the status after each check. No host then waits in a collective for a
    host that failed.
    """
    failed_checks: set[str] = set()
    for check in checks:
        if missing := [name for name in check.needs if name in failed_checks]:
            failed_checks.add(check.name)
            yield 'skipped', check.name, f'needs {", ".join(missing)}'
            continue
        watchdog = threading.Timer(timeout, _exit_on_timeout, (check.name, timeout))
        watchdog.daemon = True
        watchdog.start()
        try:
            result, error = _run_check(check, context)
            errors = {number: text for number, text in enumerate(gather_text(error)) if text}
        finally:
            watchdog.cancel()
        if errors:
            failed_checks.add(check.name)
            host, text = next(iter(errors.items()))
            where = f'on {len(errors)} host(s), host {host}: ' if jax.process_count() > 1 else ''
            yield 'FAILED', check.name, where + text
        else:
            yield 'ok', check.name, result


def _run_check(check: Check, context: PreflightContext) -> tuple[str, str]:
    """Run a check; return (result, error message), one of them empty."""
    try:
        return check.run(context), ''
    except (*console.EXPECTED_ERRORS, RuntimeError, ValueError) as failure:
        return '', _error_message(failure)


def _error_message(failure: Exception) -> str:
    """Return the message of an error in one line."""
    if console.is_disk_full(failure):
        return console.DISK_FULL
    return ' '.join(str(failure).split()) or repr(failure)


def _exit_on_timeout(name: str, seconds: float) -> None:
    """Exit the process, because a thread that waits in a collective cannot be stopped."""
    reason = (
        f'not done after {seconds:g} s: check that every host has started and that all links are up, or raise --timeout'
    )
    print(_line('FAILED', name, reason), flush=True)
    os._exit(1)


def _line(status: str, name: str, text: str) -> str:
    """Format one line of the report."""
    return f'{status:<8} {name:<12} {text}'


def main() -> int:
    """Run all checks and print their results. Return 0 if every check passed, else 1."""
    requirements = Path(REQUIREMENTS.value)
    if not requirements.is_file():  # a checkout has this file, an installed package does not
        raise ConfigError(
            f'{requirements} is missing: give --requirements FILE, the file that all hosts were installed from'
        )
    config = console.read_config(CONFIG)
    stage = select_stage(config, STAGE.value)
    context = PreflightContext(stage, Path(WORKDIR.value), requirements, STEP.value, experiment=config)
    failed = 0
    for status, name, text in run_checks(CHECKS, context, TIMEOUT.value):
        failed += status == 'FAILED'
        if jax.process_index() == 0:
            print(_line(status, name, text), flush=True)
    if jax.process_index() == 0:
        shutil.rmtree(context.workdir / PROBE_FOLDER, ignore_errors=True)
        print(f'{failed} check(s) failed' if failed else 'ready')
    return int(failed > 0)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main, distributed.session())
