"""Trains, evaluates and times the systems of this package on equal terms, and writes one table.

python -m launch.compare_systems --config configs/compare_systems.py --workdir runs/compare

Each system has its own folder, WORKDIR/SYSTEM. After an interruption the same command resumes, part by part.
WORKDIR/systems.json and systems.md are written at the end.
"""

import json
from pathlib import Path

from absl import flags

from magi_jax.benchmarks.system_table import format_table, read_results
from magi_jax.benchmarks.system_times import time_systems
from magi_jax.config import from_config_dict
from magi_jax.config_files import find_config_file, import_config

from . import console
from .study_runs import CommandFailed, execute

CONFIG = console.define_path('config', None, 'config file with a variant for each system, optionally with :runlocal')
WORKDIR = console.define_path('workdir', None, 'folder for all runs')
REPEATS = flags.DEFINE_integer('repeats', 9, 'timed turns of each system; the median counts', lower_bound=1)

TOKENIZER = 'quickstart_autoencoder'
PROTOCOLS = {'bouncing_shapes': (), 'shapes_five_frame': ('--clips=512', '--seeds=2')}
SMALL = {
    'bouncing_shapes': ('--clips=6', '--frames=8', '--long_clips=6', '--long_frames=12'),
    'shapes_five_frame': ('--clips=6', '--seeds=2'),
}


def main() -> int:
    """Return 0, or the exit status of the command that failed or was stopped by a signal."""
    name, _, extra = CONFIG.value.partition(':')
    path, root = str(find_config_file(name)), Path(WORKDIR.value)
    module = import_config(path)
    root.mkdir(parents=True, exist_ok=True)
    try:
        for system, variants in module.SYSTEMS.items():
            train_and_evaluate(root / system, f'{path}:{variants},{extra}', root, small=extra == 'runlocal')
    except CommandFailed as stopped:
        return stopped.args[0]
    configs = {
        name: from_config_dict(module.get_config(f'{variants},{extra}')) for name, variants in module.SYSTEMS.items()
    }
    times = time_systems(configs, REPEATS.value)
    results = {system: read_results(root / system) | times[system] for system in configs}
    steps = {system: config.train.steps for system, config in configs.items()}
    facts = {'command': f'python -m {__package__}.compare_systems --config {CONFIG.value}', 'steps': steps}
    (root / 'systems.json').write_text(json.dumps(facts | {'systems': results}, indent=1) + '\n')
    (root / 'systems.md').write_text(format_table(results) + '\n')
    print(f'\n{format_table(results)}\n\nwritten to {root / "systems.json"}')
    return 0


def train_and_evaluate(folder: Path, config: str, root: Path, small: bool) -> None:
    """Train a system and evaluate it under every protocol. Raise CommandFailed if a command fails."""
    tokenizer = root / 'autoencoder'
    if not small and not (tokenizer / 'tokenizer').exists():
        execute(root, f'{__package__}.train', f'--config={TOKENIZER}', f'--workdir={tokenizer}')
    overrides = () if small else (f'--config.tokenizer.path={tokenizer / "tokenizer"}',)
    execute(root, f'{__package__}.train', f'--config={config}', f'--workdir={folder}', *overrides)
    for protocol, sizes in PROTOCOLS.items():
        out = folder / protocol
        if not (out / 'metrics.json').exists():
            sizes = SMALL[protocol] if small else sizes
            flag = f'--protocol={protocol}'
            execute(root, f'{__package__}.evaluate', f'--workdir={folder}', flag, f'--out={out}', *sizes)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    console.run(main)
