"""Commands that end before they compute: each in a process forked from one that has imported what takes seconds."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.launch.commands import ROOT

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['magi_jax.training.loop'])  # none of launch/, whose flags can be defined only once


def run_forked(command, environment):
    """As `commands.run`, of `[python, '-m', module, *arguments]`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / 'out', Path(folder) / 'err'
        process = CONTEXT.Process(target=_become, args=(command[2:], environment, out, err))
        process.start()
        process.join(timeout=600)
        process.kill()  # what hangs; what has ended stays as it is
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _become(words, environment, out, err):
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = words
    runpy.run_module(words[0], run_name='__main__', alter_sys=True)
