"""Trains a tokenizer or a generator, as the config says. The same command resumes an interrupted run.

python -m launch.train --config configs/quickstart.py --workdir runs/quickstart/magi [--config.optim.learning_rate=1e-3]

A config with stages is trained through all of them, each in its own folder `stage_1`, `stage_2`, ... of --workdir.
"""

from absl import flags

from magi_jax.training.stages import train_stages

from . import console, distributed
from .config_flag import define_config

CONFIG = define_config()
WORKDIR = console.define_path('workdir', None, 'folder of this run, for checkpoints, metrics and previews')
PARAMETERS = flags.DEFINE_bool('parameters', False, 'print a table of all parameters with their shapes')

STOPPED = 143  # 128 + SIGTERM


def main() -> int:
    """Return 0 if the run is complete, or 143 if a signal stopped it after saving.

    A signal to any host stops all hosts.
    """
    terminal = console.Terminal()
    if not train_stages(console.read_config(CONFIG), WORKDIR.value, terminal, PARAMETERS.value):
        terminal.line('stopped by a signal after saving a checkpoint: run the same command to resume')
        return STOPPED
    return 0


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main, distributed.session())
