"""Processes that crash, hang and raise, and the one that gives them work."""

import os
import signal
import subprocess
import sys
import time

from magi_jax.data.preparation import workers
from tests.launch.commands import ROOT


def job(item):
    """What the workers are given to do."""
    kind, value = item
    if kind == 'crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 'crash once' and not os.path.exists(value):
        with open(value, 'w'):
            os._exit(3)
    if kind == 'hang':
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        time.sleep(600)
    if kind == 'raise':
        raise ZeroDivisionError(value)
    if kind == 'slow':
        time.sleep(value)
    return kind, value


def test_order_crashes_and_hangs(tmp_path):
    items = [
        ('slow', 0.3),
        ('', 1),
        ('crash', 0),
        ('crash once', str(tmp_path / 'mark')),
        ('hang', 0),
        ('', 2),
        ('', 3),
    ]
    results = list(workers.run_ordered(job, items, processes=2, timeout=1.5))
    assert [results[i] for i in (0, 1, 3, 5, 6)] == [items[i] for i in (0, 1, 3, 5, 6)]
    assert not results[2].timed_out and 'Segmentation' in results[2].cause
    assert results[4].timed_out


def test_items_are_read_only_as_far_as_needed():
    taken = []
    items = (taken.append(n) or ('', n) for n in range(100))
    results = workers.run_ordered(job, items, processes=1, timeout=60, ahead=4)
    assert next(results) == ('', 0) and len(taken) <= 5
    results.close()


def test_an_exception_costs_its_item_and_nothing_else():
    items = [('', 1), ('raise', 'why\nnot'), ('', 2)]
    first, failed, last = workers.run_ordered(job, items, processes=1, timeout=60)
    assert (first, last) == (('', 1), ('', 2))
    assert failed.raised and not failed.timed_out and failed.cause == 'ZeroDivisionError: why not'


def test_workers_end_with_their_owner(tmp_path):
    script = tmp_path / 'owner.py'
    script.write_text(
        'from magi_jax.data.preparation import workers\n'
        'from tests.data.test_prepare_workers import job\n'
        'if __name__ == "__main__":\n'
        '    print(list(workers.run_ordered(job, [("", 1)], 1, 60)), flush=True)\n'
        '    list(workers.run_ordered(job, [("hang", 0)], 1, 1))\n'
    )
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True) as owner:
        assert owner.stdout.readline() == "[('', 1)]\n"
        owner.kill()
        # The pipe is inherited by the workers: it ends when the last of them is gone, the hanging one by its alarm.
        assert owner.stdout.read() == ''
