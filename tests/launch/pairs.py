"""Two processes of one run, as two hosts would start it; and rounds in which one of them is stopped or killed.

PYTHONPATH=. python -m tests.launch.pairs 10 VIDEOS
"""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from magi_jax.training.metrics import read_metrics
from tests.launch.commands import ROOT, train_command, with_devices

ENDS_WITHIN = 120  # seconds


def start_pair(command, environment, devices=1):
    """Both processes of a command, each with so many devices; their output is text in pipes."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    environment = with_devices(environment, devices)
    who = ['--coordinator', address, '--processes', '2', '--process']
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return [subprocess.Popen([*command, *who, i], env=environment, cwd=ROOT, **pipes) for i in '01']


def finish(pair, seconds=600):
    """Exit statuses and what each process said, (stdout, stderr); kills what is not done in time."""
    deadline = time.monotonic() + seconds
    said = []
    for process in pair:
        try:
            said.append(process.communicate(timeout=max(1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            for hung in pair:
                hung.kill()
            raise
    return [process.returncode for process in pair], said


def steps_saved(workdir):
    """Steps of the complete checkpoints, ascending."""
    folder = workdir / 'checkpoints'
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit())


def strike(command, environment, workdir, kind, victim, delay, devices=1):
    """Starts a pair, waits until it trains ('step', 'term') or saves ('save'), and `delay` later stops the victim.

    Returns:
      (exit statuses, stdout and stderr of each, seconds from the signal to the end of the other process).
    """
    before = _trained(workdir)
    pair = start_pair(command, environment, devices)
    saving = workdir / 'checkpoints'
    while not (any(saving.glob('*.orbax-checkpoint-tmp*')) if kind == 'save' else _trained(workdir) > before):
        assert all(process.poll() is None for process in pair), finish(pair)
        time.sleep(0.002)
    time.sleep(delay)
    pair[victim].send_signal(signal.SIGTERM if kind == 'term' else signal.SIGKILL)
    struck = time.monotonic()
    pair[1 - victim].wait(timeout=ENDS_WITHIN)
    seconds = time.monotonic() - struck
    return *finish(pair), seconds


def assert_ended_well(kind, victim, statuses, said):
    """A stopped pair saved and left together; of a killed one the other process said why it ended."""
    if kind == 'term':
        assert statuses == [143, 143], said
        return
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] not in (0, 143), said
    assert re.search('another process of this run ended|another task died', said[1 - victim][1]), said


def resumed_at(output):
    """The step that a run said it goes on from, 0 for a new one."""
    found = re.search(r'resuming from the checkpoint of step (\d+) ', output)
    return int(found[1]) if found else 0


def _trained(workdir):
    """How many lines of metrics there are."""
    path = workdir / 'metrics.jsonl'
    return path.read_text().count('"step"') if path.exists() else 0


def rounds(count, command, environment, workdir, seed):
    """Strikes a run `count` times at random, then lets it complete; yields a line for each."""
    draw, saved = random.Random(seed), 0
    for number in range(count):
        kind, victim = ('step', 'term', 'save')[number % 3], draw.randrange(2)
        statuses, said, seconds = strike(command, environment, workdir, kind, victim, draw.uniform(0, 1))
        assert_ended_well(kind, victim, statuses, said)
        assert resumed_at(said[0][0]) >= saved, said
        saved = max(steps_saved(workdir), default=0)
        yield f'{kind} on process {victim}: statuses {statuses}, other ended after {seconds:.1f} s, saved {saved}'
    statuses, said = finish(start_pair(command, environment))
    assert statuses == [0, 0], said
    assert resumed_at(said[0][0]) == saved, said
    yield f'complete, from step {saved}'


if __name__ == '__main__':
    folder = pathlib.Path(tempfile.mkdtemp())
    here = {**os.environ, 'PYTHONPATH': str(ROOT)}
    steps = ['--config.train.steps=120', '--config.train.checkpoint_every=5', '--config.train.log_every=1']
    begun = time.monotonic()
    for line in rounds(int(sys.argv[1]), train_command(folder, sys.argv[2], *steps), here, folder, seed=1):
        print(f'{time.monotonic() - begun:6.0f} s  {line}', flush=True)
    print(f'{len(read_metrics(str(folder))["train/loss"])} steps of losses')
