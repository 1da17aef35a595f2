"""Trains and evaluates every run of a study, and writes its table and page.

python -m launch.study --config configs/study_strategies.py --workdir runs/study

Each run has its own folder, WORKDIR/VARIANTS/seedN. After an interruption the same command resumes and skips finished
runs. WORKDIR/study.json, study.md and study.html are written after every run.
"""

from pathlib import Path

from absl import flags

from magi_jax.config_files import find_config_file, import_config

from . import console
from .study_runs import CommandFailed, run_all

CONFIG = console.define_path('config', None, 'config file of a study: NAME or PATH.py, optionally with :runlocal')
WORKDIR = console.define_path('workdir', None, 'folder for all runs of the study')


def main() -> int:
    """Return 0, or the exit status of the command that failed or was stopped by a signal."""
    name, _, extra = CONFIG.value.partition(':')
    path = str(find_config_file(name))
    module, root = import_config(path), Path(WORKDIR.value)
    plan = module.RUNLOCAL_PLAN if extra == 'runlocal' else module.PLAN
    try:
        run_all(plan, path, extra, root)
    except CommandFailed as stopped:
        return stopped.args[0]
    print(f'\n{(root / "study.md").read_text()}\npage: {root / "study.html"}')
    return 0


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main)
