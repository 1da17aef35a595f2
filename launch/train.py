"""Trains a tokenizer or a generator; the config says which. Run the same command again and it goes on.

python -m launch.train --config configs/quickstart.py --workdir runs/quickstart/magi [--config.optim.learning_rate=1e-3]
"""

from absl import flags

from magi_jax.training.loop import train

from . import console, distributed
from .config_flag import define_config

CONFIG = define_config()
WORKDIR = console.define_path('workdir', None, 'folder of this run: checkpoints, metrics, previews')
PARAMETERS = flags.DEFINE_bool('parameters', False, 'list all parameters with their shapes')

STOPPED = 143  # 128 + SIGTERM


def main() -> int:
    """Returns 0 when the run is complete, 143 when a signal (to any host) made it save and stop, 1 on an error."""
    terminal = console.Terminal()
    if not train(console.read_config(CONFIG), WORKDIR.value, terminal, PARAMETERS.value):
        terminal.line('stopped by a signal after saving a checkpoint: run the same command to go on')
        return STOPPED
    return 0


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main, distributed.session())
