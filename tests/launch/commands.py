"""Commands as their users run them: real processes in an environment of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def train_command(workdir, videos, *overrides):
    """A short run of configs/quickstart.py:runlocal, shrunk until a step takes milliseconds; later overrides win."""
    config = ['--config', str(ROOT / 'configs/quickstart.py:runlocal'), '--workdir', str(workdir)]
    fields = ['data.source=video_folder', f'data.path={videos}', 'data.height=32', 'data.width=32', 'data.batch_size=2']
    fields += ['model.blocks=1', 'train.eval_batches=1', 'train.eval_every=1000', 'train.sample_every=1000']
    fields.append('optim.name=adamw')  # its step compiles in half the time of Muon's
    return [*module('launch.train'), *config, *(f'--config.{field}' for field in fields), *overrides]


def module(name):
    return [sys.executable, '-m', name]


def with_devices(environment, devices):
    """The same for processes with so many virtual devices."""
    flags = [environment.get('XLA_FLAGS', ''), f'--xla_force_host_platform_device_count={devices}']
    return environment | {'XLA_FLAGS': ' '.join(flags)}


def run(command, environment):
    """The finished process, with what it said as text."""
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


def assert_one_line(result, *words):
    """The command failed with nothing but one line on stderr, which says all of `words`."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith('error: '), result.stderr
    assert all(word in lines[0] for word in words), result.stderr
