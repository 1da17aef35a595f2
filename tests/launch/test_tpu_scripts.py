"""launch/tpu/pod.sh and worker.sh: what they would run, word for word; and run, against fakes of gcloud."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.commands import ROOT
from tests.launch.scripts import ODD, assert_nothing_called, fake_commands, make_project, put_command, script

POD = ['--name', 'pod', '--zone=us-x1-a', '--type', 'v6e-16']

# Remembers how it was called and answers with the next line of a file; the last line is answered again and again.
FAKE_GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$FAKE/calls"
next() {
  answer="$(head -n 1 "$FAKE/$1")"
  if (($(wc -l <"$FAKE/$1") > 1)); then sed -i 1d "$FAKE/$1"; fi
  if [[ $answer == NOT_FOUND || $answer == UNAVAILABLE ]]; then echo "ERROR: (gcloud) $answer: ..." >&2; exit 1; fi
  tr ';' '\\n' <<<"$answer"
}
case "$*" in
  *'queued-resources describe'*) next states ;;
  *'tpu-vm describe'*) next nodes ;;
  *'worker.sh status'*) next workers ;;
  *create*) [[ ! -e $FAKE/create_fails ]] ;;
esac
"""
# Runs what should run on a worker in this machine's shell, in a home of its own.
LOCAL_GCLOUD = """#!/usr/bin/env bash
for word in "$@"; do
  if [[ $word == --command=* ]]; then cd "$HOME" && exec bash -c "${word#--command=}"; fi
done
"""


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def fake(tmp_path, monkeypatch, project):
    folder = fake_commands(tmp_path, monkeypatch)
    yield folder
    assert_nothing_called(folder)


def dry_run(project, *arguments):
    """The commands that pod.sh would run, each as its words."""
    lines = script(project, 'pod.sh', *arguments[:1], *POD, '--dry-run', *arguments[1:]).splitlines()
    return [shlex.split(line) for line in lines if not line.startswith('#')]


def remote(words):
    """What a gcloud command runs on the workers."""
    (command,) = (word.removeprefix('--command=') for word in words if word.startswith('--command='))
    assert {'--node=all', '--worker=all', '--zone=us-x1-a'} <= set(words)
    return command


def test_create_asks_and_looks(project, fake):
    create, look, node = dry_run(project, 'create')
    asked = '--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --node-id=pod --zone=us-x1-a'
    assert shlex.join(create) == f'gcloud compute tpus queued-resources create pod {asked}'
    assert look[3:6] == ['queued-resources', 'describe', 'pod'] and '--format=value(state.state)' in look
    assert node[3:6] == ['tpu-vm', 'describe', 'pod'] and '--format=value(state)' in node


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--tier=spot', '--project', 'p'], {'--spot', '--project=p', '--node-id=pod'}),
        (['--tier=reserved', '--runtime=mine'], {'--reserved', '--runtime-version=mine'}),
        (['--slices=2', '--type=v5p-32'], {'--node-count=2', '--node-prefix=pod', '--runtime-version=v2-alpha-tpuv5'}),
        (['--type=v5litepod-16'], {'--runtime-version=v2-alpha-tpuv5-lite'}),
        (['--type=v4-32'], {'--runtime-version=tpu-ubuntu2204-base'}),
    ],
)
def test_create_flags(project, fake, flags, words):
    create, *looks = dry_run(project, 'create', *flags)
    assert words <= set(create)
    assert len({'--spot', '--reserved'} & set(create)) == len({'--spot', '--reserved'} & words)
    nodes = [look[5] for look in looks if 'tpu-vm' in look]
    assert nodes == (['pod-0', 'pod-1'] if '--slices=2' in flags else ['pod'])


def test_install_brings_head_and_the_pins_everywhere(project, fake):
    folder, archive, copy, unpack = dry_run(project, 'install', '--bucket', 'my-bucket', '--iap')
    path = str(project / 'runs/pod/pod.tar.gz')
    assert folder == ['mkdir', '-p', str(project / 'runs/pod')]
    assert archive == ['git', '-C', str(project), 'archive', '--format=tar.gz', f'--output={path}', 'HEAD']
    assert copy[3:7] == ['queued-resources', 'scp', path, 'pod:magi_jax.tar.gz'] and '--worker=all' in copy
    assert remote(unpack).endswith('tar -xzf ../magi_jax.tar.gz && bash launch/tpu/worker.sh install my-bucket')
    assert '--tunnel-through-iap' in copy and '--tunnel-through-iap' in unpack
    assert not (project / 'runs').exists()
    worker = (project / 'launch/tpu/worker.sh').read_text()
    assert "-e '.[tpu]' -c requirements.txt" in worker and 'source launch/environment.sh' in worker


@pytest.mark.parametrize('action', ['run', 'exec'])
def test_commands_reach_the_workers_word_for_word(project, fake, action):
    (words,) = dry_run(project, action, '--', *ODD)
    verb = 'start' if action == 'run' else 'exec'
    assert shlex.split(remote(words)) == ['bash', 'magi_jax/launch/tpu/worker.sh', verb, *ODD]


def test_other_subcommands(project, fake):
    *_, workers = dry_run(project, 'status')
    assert 'worker.sh status' in remote(workers)
    folder, logs = dry_run(project, 'logs', '--lines=7')
    assert remote(logs).endswith('worker.sh tail 7') and f'--output-directory={folder[-1]}' in logs
    (stop,) = dry_run(project, 'stop')
    assert remote(stop).endswith('worker.sh stop')
    (delete,) = dry_run(project, 'delete')
    assert delete[4:7] == ['delete', 'pod', '--force'] and '--quiet' not in delete
    assert '--quiet' in dry_run(project, 'delete', '--yes')[0]


def test_watch_plans_everything_in_order(project, fake):
    words = dry_run(project, 'watch', '--tier=spot', '--', *ODD)
    verbs = [line[4] if line[0] == 'gcloud' else line[0] for line in words]
    look = ['describe', 'describe']
    assert verbs == [*look, 'ssh', 'delete', 'create', *look, 'mkdir', 'git', 'scp', 'ssh', 'ssh']
    assert '--quiet' in words[3] and '--spot' in words[4]
    assert shlex.split(remote(words[-1]))[2:] == ['start', *ODD]


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['create', *POD, '--wheels=4'], 'unknown flag --wheels'),
        (['create', *POD, 'python'], "'python' is not a flag: put the command after --"),
        (['create', '--name=a', '--zone=b'], '--type is missing'),
        (['create', '--name=a', '--zone=b', '--type=v9-8'], 'no runtime version is known'),
        (['create', *POD, '--tier=cheap'], '--tier cheap is unknown: choose spot, on-demand or reserved'),
        (['create', *POD, '--slices=two'], '--slices two is not a whole number'),
        (['create', '--name'], '--name needs a value'),
        (['status', '--name=a'], '--name or --zone is missing: give both'),
        (['run', *POD], 'the command is missing'),
        (['explode', *POD], 'unknown subcommand explode'),
    ],
)
def test_pod_mistakes_are_one_line(project, fake, arguments, said):
    error = script(project, 'pod.sh', *arguments, status=1)
    assert error.startswith('error: ') and said in error and error.count('\n') == 1


def test_settings_file(project, fake, tmp_path):
    settings = tmp_path / 'settings'
    settings.write_text('# ours\nname=other\nzone=us-x1-a\ntype=v5p-32\ntier=spot\niap\n')
    said = script(project, 'pod.sh', 'create', '--settings', str(settings), '--type=v4-8', '--dry-run')
    assert 'create other --accelerator-type=v4-8' in said and '--spot' in said
    settings.write_text('rm -rf /')
    assert 'is not flag=VALUE' in script(project, 'pod.sh', 'create', f'--settings={settings}', status=1)


def watch(project, fake, states, workers, nodes=('READY',), flags=(), status=0):
    """The gcloud verbs that a watch calls, and what it says."""
    put_command(fake, 'gcloud', FAKE_GCLOUD)
    for name, answers in (('states', states), ('workers', workers), ('nodes', nodes)):
        (fake / name).write_text('\n'.join(answers) + '\n')
    said = script(project, 'pod.sh', 'watch', *POD, '--poll=0', *flags, '--', *ODD, status=status)
    calls = [line for line in (fake / 'calls').read_text().split('\n') if line.startswith('compute tpus')]
    kinds = [re.search(r'worker\.sh (?:status|install|start)|(?:delete|create|scp) ', call) for call in calls]
    return [kind[0].split()[-1] for kind in kinds if kind], said


RECREATE = ['delete', 'create', 'scp', 'install', 'start']
ALL_DONE = 'worker: exited 0;worker: exited 0'


def test_watch_recreates_after_preemption_and_starts_the_same_command(project, fake):
    states = ['ACTIVE', 'SUSPENDED', 'NOT_FOUND', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    calls, said = watch(project, fake, states, ['worker: running;worker: running', 'worker: running', ALL_DONE])
    assert calls == ['status', *RECREATE, 'status', 'status']
    assert 'pod: SUSPENDED; requesting it again' in said and 'done: every worker exited with status 0' in said


@pytest.mark.parametrize('node', ['PREEMPTED', 'NOT_FOUND'])
def test_watch_sees_a_lost_node_of_an_active_resource(project, fake, node):
    calls, _ = watch(project, fake, ['ACTIVE', 'NOT_FOUND', 'ACTIVE'], [ALL_DONE], nodes=[node, 'READY'])
    assert calls == [*RECREATE, 'status']


def test_watch_waits_when_the_cloud_or_the_workers_do_not_answer(project, fake):
    states = ['UNAVAILABLE', 'DELETING', 'ACTIVE']
    calls, said = watch(project, fake, states, ['UNAVAILABLE', 'worker: running', ALL_DONE])
    assert calls == ['status'] * 3 and 'pod: UNREACHABLE' in said and 'the workers are unreachable' in said


def test_watch_starts_from_nothing(project, fake):
    calls, _ = watch(project, fake, ['NOT_FOUND', 'NOT_FOUND', 'ACTIVE'], [ALL_DONE])
    assert calls == [*RECREATE[1:], 'status']
    (fake / 'calls').unlink()
    assert watch(project, fake, ['ACTIVE'], ['worker: not installed', ALL_DONE])[0] == [
        'status', 'scp', 'install', 'start', 'status',
    ]  # fmt: skip


def test_watch_starts_a_stopped_command_again_and_gives_up_on_a_failing_one(project, fake):
    stopped = ['worker: exited 143;worker: exited 0'] * 5
    assert watch(project, fake, ['ACTIVE'], [*stopped, ALL_DONE])[0].count('start') == 5
    (fake / 'calls').unlink()
    calls, said = watch(
        project, fake, ['ACTIVE'], ['worker: exited 1;worker: exited 0'], flags=['--failures=2'], status=1
    )
    assert calls == ['status', 'start', 'status'] and '2 failures: see' in said


def test_watch_gives_up_when_the_request_cannot_be_met(project, fake):
    (fake / 'create_fails').touch()
    calls, said = watch(project, fake, ['FAILED', 'NOT_FOUND'] * 2 + ['FAILED'], [ALL_DONE], status=1)
    assert calls == ['delete', 'create'] * 2 and '3 failures' in said


def test_worker_keeps_the_command_and_notes_how_it_ended(project, fake, tmp_path):
    put_command(fake, 'gcloud', LOCAL_GCLOUD)
    marker = tmp_path / 'started'
    program = (
        'import json, pathlib, signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
        'print(json.dumps(sys.argv[1:]), flush=True)\n'
        f'pathlib.Path({str(marker)!r}).touch()\n'
        'time.sleep(60)\n'
    )

    def worker(*arguments):
        return script(project, 'worker.sh', *arguments).strip()

    assert worker('status') == 'worker: idle'
    command = [sys.executable, '-c', program, *ODD]
    assert script(project, 'pod.sh', 'run', *POD, '--', *command).strip() == 'worker: started'
    wait_for(marker.exists)
    assert worker('status') == 'worker: running' and worker('start', *command) == 'worker: running already'
    worker('stop')
    wait_for(lambda: worker('status') == 'worker: exited 143')
    assert json.loads(worker('tail', '1')) == ODD
    marker.unlink()
    worker('start', *command)
    wait_for(marker.exists)
    os.killpg(int((project / 'runs/pod/pid').read_text()), signal.SIGKILL)
    wait_for(lambda: worker('status') == 'worker: exited 137')
    assert script(project, 'pod.sh', 'exec', *POD, '--', 'printf', '%s|', *ODD) == '|'.join(ODD) + '|'


def test_worker_installs_the_pins_and_the_tpu_extra_and_mounts_the_bucket(project, fake, tmp_path):
    noted = '#!/usr/bin/env bash\necho "${0##*/} $*" >>"$FAKE/calls"\n'
    for name in ('pip_python', 'gcsfuse'):
        put_command(fake, name, noted)
    put_command(fake, 'python3.12', '#!/usr/bin/env bash\nexit "$(cat "$FAKE/has_python")"\n')
    put_command(fake, 'python3.11', '#!/usr/bin/env bash\nexit 1\n')
    put_command(fake, 'python3', noted + '[[ $* != *find* ]] || echo /opt/new/python3.12\n')
    put_command(fake, 'mountpoint', '#!/usr/bin/env bash\nexit 1\n')
    (project / 'launch/environment.sh').write_text('PYTHON=pip_python\necho "$PATH" >"$FAKE/path"\n')
    pip = 'pip_python -m pip install -q --disable-pip-version-check --no-input -e .[tpu] -c requirements.txt'
    (fake / 'has_python').write_text('0')
    script(project, 'worker.sh', 'install', 'my-bucket')
    assert (fake / 'calls').read_text().splitlines() == [pip, f'gcsfuse --implicit-dirs my-bucket {tmp_path}/bucket']
    (fake / 'calls').unlink()
    (fake / 'has_python').write_text('1')
    script(project, 'worker.sh', 'install')
    *python, last = (fake / 'calls').read_text().splitlines()
    assert python[:2] == ['python3 -m pip install -q --user uv', 'python3 -m uv python install -q 3.12'] and last == pip
    assert (fake / 'path').read_text().startswith('/opt/new:')


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize('name', ['pod.sh', 'gke.sh', 'worker.sh'])
def test_help(project, fake, name):
    said = script(project, name, '--help')
    assert f'{name} ' in said and 'set -e' not in said and '#' not in said


def test_shellcheck():
    if shutil.which('shellcheck') is None:
        pytest.skip('shellcheck is not installed: sudo apt-get install shellcheck')
    scripts = sorted(path.relative_to(ROOT) for path in (ROOT / 'launch').rglob('*.sh'))
    assert len(scripts) >= 6
    result = subprocess.run(['shellcheck', '-x', *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
