"""Times the JAX program against the PyTorch reference, with the same weights and inputs, after comparing outputs.

python -m launch.benchmark train --config configs/quickstart.py --against torch,torch_compiled
python -m launch.benchmark sample --config configs/quickstart.py --against torch --clips 4 --frames 16 --rounds 7

Each framework has its own process, on the first GPU or on the CPU cores of this process. The processes take turns, so
changes in the speed of the machine affect all of them. Inputs and outputs are tokens; no tokenizer runs.
PyTorch is part of the torch extra: pip install -e .[torch] -c requirements.txt.
"""

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from magi_jax.benchmarks import side_by_side, table
from magi_jax.benchmarks.benchmark_config import BenchmarkConfig
from magi_jax.config import ConfigError, MagiConfig

from . import console
from .config_flag import define_config

CONFIG = define_config()
TASK = flags.DEFINE_enum(
    'task', None, ['train', 'sample'], 'program to time; may also be the first argument, without --task'
)
AGAINST = flags.DEFINE_list(
    'against', [], f'implementations to compare with JAX, comma-separated: {", ".join(side_by_side.IMPLEMENTATIONS)}'
)
MODES = ['default', 'reduce-overhead', 'max-autotune']
TORCH_MODE = flags.DEFINE_enum('torch_mode', 'default', MODES, 'mode of torch.compile')
CLIPS = flags.DEFINE_integer('clips', None, 'batch size in clips; default: data.batch_size', lower_bound=1)
FRAMES = flags.DEFINE_integer('frames', None, 'frames of each video, for sample; default: data.frames', lower_bound=1)
ROUNDS = flags.DEFINE_integer('rounds', 7, 'number of turns of each process', lower_bound=1)
SECONDS = flags.DEFINE_float('seconds', 2.0, 'approximate duration of the timed calls of a turn', lower_bound=0.0)
TENSOR_FLOAT = flags.DEFINE_bool(
    'tensor_float', False, 'use TensorFloat-32 for float32 products on a GPU, in all frameworks'
)
JSON = console.define_path('json', None, 'new result file; default: a new file in magi_jax/benchmarks/results')

RESULTS = Path(side_by_side.__file__).with_name('results')
# The processes share a GPU, so JAX must not reserve three quarters of it. Large pages speed up XLA's CPU buffers.
ENVIRONMENT = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def main() -> None:
    """Run the benchmark, print the table and write the JSON file. Exit with status 1 if outputs differ."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if JSON.value:
        console.check_new(Path(JSON.value))
    names, settings = side_by_side.implementations(AGAINST.value), read_settings()
    result = side_by_side.run(settings, names, lambda line: print(line, flush=True))
    result = description(settings) | result
    path = Path(JSON.value) if JSON.value else console.unused_path(RESULTS / file_name(result))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')
    print(f'\n{table.markdown(result)}\n\nwritten to {path}')


def read_settings() -> BenchmarkConfig:
    """Return the benchmark that the flags describe."""
    config = console.read_config(CONFIG)
    if not isinstance(config, MagiConfig):
        raise ConfigError(f"config.system = {config.system!r} has no benchmark: give a config of system 'magi'")
    data = dataclasses.replace(config.data, batch_size=CLIPS.value or config.data.batch_size)
    return BenchmarkConfig(
        task=TASK.value,
        config=dataclasses.replace(config, data=data),
        frames=FRAMES.value or data.frames,
        rounds=ROUNDS.value,
        seconds=SECONDS.value,
        tensor_float=TENSOR_FLOAT.value,
        torch_mode=TORCH_MODE.value,
    )


def description(settings: BenchmarkConfig) -> dict[str, Any]:
    """Return the facts that the numbers depend on: command, machine, versions."""
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=RESULTS.parent, capture_output=True, text=True)
    model, clips = settings.config.model, settings.config.data.batch_size
    length = f'{settings.frames} frames' if settings.task == 'sample' else f'{settings.config.data.frames} frames'
    return {
        'title': f'{settings.task}: {model.blocks} blocks of width {model.width}, {clips} clips of {length},'
        f' {settings.config.train.compute_dtype}',
        'command': ' '.join([f'python -m {__package__}.benchmark', *sys.argv[1:]]),
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'commit': commit.stdout.strip(),
        'processor': processor(),
        'python': platform.python_version(),
        'task': settings.task,
        'clips': clips,
        'frames': settings.frames,
        'float32_products': 'TensorFloat-32' if settings.tensor_float else 'float32',
        'torch_mode': settings.torch_mode,
        'config': dataclasses.asdict(settings.config),
    }


def processor() -> str:
    """Return the name of the CPU."""
    path = Path('/proc/cpuinfo')
    named = re.search(r'model name\s*:\s*(.+)', path.read_text()) if path.exists() else None
    return named[1] if named else platform.machine()


def file_name(result: dict[str, Any]) -> str:
    """Return a name like train_cpu_4x16_width96_float32.json: task, device, clips x frames, width, compute dtype."""
    device = next(iter(result['implementations'].values()))['device'].lower().replace(' ', '_')
    model, dtype = result['config']['model'], result['config']['train']['compute_dtype']
    frames = result['frames'] if result['task'] == 'sample' else result['config']['data']['frames']
    return f'{result["task"]}_{device}_{result["clips"]}x{frames}_width{model["width"]}_{dtype}.json'


if __name__ == '__main__':
    if len(sys.argv) > 1 and not sys.argv[1].startswith('-'):
        sys.argv[1] = f'--task={sys.argv[1]}'
    flags.mark_flags_as_required(['config', 'task'])
    console.run(main)
