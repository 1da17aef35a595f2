"""launch/tpu/gke.sh and its JobSet: the manifest as Kubernetes would read it, and what the subcommands would run."""

import re
import shlex
import subprocess

import pytest
import yaml

from tests.launch.commands import ROOT
from tests.launch.scripts import ODD, assert_nothing_called, fake_commands, make_project, script

GKE = ['--name=run', '--image=r/magi:1', '--bucket=b']


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def fake(tmp_path, monkeypatch, project):
    folder = fake_commands(tmp_path, monkeypatch)
    yield folder
    assert_nothing_called(folder)


def render(project, *arguments):
    return yaml.safe_load(script(project, 'gke.sh', 'render', *GKE, *arguments, '--', *ODD))


@pytest.mark.parametrize(
    ('tpu', 'flags', 'label', 'hosts', 'chips'),
    [
        ('v4:2x2x1', [], 'tpu-v4-podslice', 1, 4),
        ('v4:2x2x4', [], 'tpu-v4-podslice', 4, 4),
        ('v5e:1x1', [], 'tpu-v5-lite-podslice', 1, 1),
        ('v5e:2x4', ['--chips=8'], 'tpu-v5-lite-podslice', 1, 8),
        ('v5e:4x4', [], 'tpu-v5-lite-podslice', 4, 4),
        ('v5p:2x2x4', [], 'tpu-v5p-slice', 4, 4),
        ('v5p:4x8x8', [], 'tpu-v5p-slice', 64, 4),
        ('v6e:2x2', [], 'tpu-v6e-slice', 1, 4),
        ('v6e:2x4', [], 'tpu-v6e-slice', 2, 4),
        ('v6e:16x16', ['--slices=3'], 'tpu-v6e-slice', 64, 4),
    ],
)
def test_jobset_has_a_pod_for_every_host(project, fake, tpu, flags, label, hosts, chips):
    manifest = render(project, '--tpu', tpu, *flags)
    assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    (jobs,) = manifest['spec']['replicatedJobs']
    job, pod = jobs['template']['spec'], jobs['template']['spec']['template']['spec']
    assert jobs['replicas'] == (3 if flags == ['--slices=3'] else 1)
    assert (job['parallelism'], job['completions'], job['backoffLimit']) == (hosts, hosts, 0)
    selector = {'gke-tpu-accelerator': label, 'gke-tpu-topology': tpu.split(':')[1]}
    assert pod['nodeSelector'] == {f'cloud.google.com/{key}': value for key, value in selector.items()}
    (container,) = pod['containers']
    assert container['resources'] == {'requests': {'google.com/tpu': chips}, 'limits': {'google.com/tpu': chips}}
    assert container['command'] == [word.replace('$(', '$$(') for word in ODD]  # $$( is Kubernetes for $(
    assert container['image'] == 'r/magi:1'


def test_jobset_settings(project, fake):
    flags = ['--tier=spot', '--restarts=7', '--grace=99', '--namespace=ns', '--service-account=sa', '--name=true']
    manifest = render(project, '--tpu=v6e:4x4', *flags)
    pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert manifest['spec']['failurePolicy'] == {'maxRestarts': 7}
    assert manifest['metadata']['name'] == 'true' and manifest['metadata']['namespace'] == 'ns'
    assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true' and pod['serviceAccountName'] == 'sa'
    assert pod['terminationGracePeriodSeconds'] == 99 and pod['restartPolicy'] == 'Never'
    mounts = {mount['name'] for mount in pod['containers'][0]['volumeMounts']}
    assert mounts == {volume['name'] for volume in pod['volumes']}
    assert pod['volumes'][0]['csi']['volumeAttributes']['bucketName'] == 'b'
    reserved = render(project, '--tpu=v6e:4x4', '--tier=mine')
    pod = reserved['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert pod['nodeSelector']['cloud.google.com/reservation-name'] == 'mine'


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--tpu=v5e:2x2x4'], 'invalid topology: v5e and v6e need one like 4x4'),
        (['--tpu=v5p:4x4'], 'invalid topology: v5e and v6e need one like 4x4'),
        (['--tpu=v9:4x4'], 'unknown kind: choose v4, v5e, v5p or v6e'),
        (['--tpu=v6e:2x3'], '6 chips cannot be divided over hosts of 4'),
        (['--tpu=v6e:2x2', '--slices=2'], 'slices of a single host cannot be connected'),
        (['--tpu=v6e:4x4', '--image=a\nb: c'], '--image'),
        ([], '--tpu is missing'),
    ],
)
def test_gke_mistakes_are_one_line(project, fake, flags, said):
    error = script(project, 'gke.sh', 'render', *GKE, *flags, '--', 'true', status=1)
    assert error.startswith('error: ') and said in error


def test_gke_dry_runs(project, fake):
    def lines(*arguments):
        said = script(project, 'gke.sh', *arguments, '--dry-run', *(['--', *ODD] if arguments[0] == 'run' else []))
        return [shlex.split(line) for line in said.splitlines()]

    manifest = project / 'runs/pod/run.yaml'
    assert lines('run', *GKE, '--tpu=v6e:4x4') == [
        ['kubectl', '--namespace=default', 'apply', f'--filename={manifest}']
    ]
    assert yaml.safe_load(manifest.read_text())['metadata']['name'] == 'run'
    assert [line[2:4] for line in lines('status', '--name=run')] == [['get', 'jobset'], ['get', 'pods']]
    assert lines('delete', '--name=run') == [['kubectl', '--namespace=default', 'delete', 'jobset', 'run']]
    assert lines('logs', '--name=run')[0][2] == 'logs'
    assert [line[:2] for line in lines('build', '--image=i')] == [['docker', 'build'], ['docker', 'push']]


def test_dockerfile_copies_what_exists_and_pins_jax():
    source = (ROOT / 'launch/tpu/Dockerfile').read_text()
    copied = [word for line in re.findall(r'^COPY (.*)', source, re.M) for word in line.split()[:-1]]
    assert {'requirements.txt', 'magi_jax', 'launch', 'configs'} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (expression,) = re.findall(r'"\$\((sed [^)]*txt)\)"', source.replace(r'\)', '\0'))
    version = subprocess.check_output(['bash', '-c', expression.replace('\0', r'\)')], cwd=ROOT, text=True).strip()
    assert f'jax=={version} ' in (ROOT / 'requirements.txt').read_text()
