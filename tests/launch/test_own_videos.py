"""The way of a user's own videos, five commands: files, dataset, autoencoder, latents, generator, new videos."""

import json
import subprocess
import time

import numpy as np
import pytest

from magi_jax.data import prepared
from magi_jax.training.metrics import read_metrics
from tests.data import video_kinds
from tests.launch.commands import assert_one_line, module, run
from tests.launch.pairs import finish, start_pair

pytestmark = pytest.mark.slow
CONFIG = 'configs/own_videos.py:'


def train(workdir, variant, *overrides):
    return [*module('launch.train'), '--config', f'{CONFIG}{variant}', '--workdir', str(workdir), *overrides]


@pytest.fixture(scope='module')
def environment(environment):
    return environment | {'XLA_FLAGS': ''}


@pytest.fixture(scope='module')
def steps(tmp_path_factory, environment):
    """The folder with everything, and a function that runs a command and returns what it printed."""
    root = tmp_path_factory.mktemp('own')
    for number, (name, (content, _)) in enumerate(video_kinds.good_files().items()):
        folder = root / 'clips' / ('validation' if number % 4 == 3 else 'train')
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    def do(command):
        result = run(command, environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    sizes = ['--height=64', '--width=64', '--min_frames=4', '--processes=1']
    source = ['--dataset=my_videos', f'--source={root / "clips"}', f'--data_dir={root / "data"}']
    do([*module('launch.prepare_data'), *source, *sizes])
    do(train(root / 'autoencoder', 'autoencoder,runlocal', f'--config.data.path={root / "data"}'))
    return root, do


def shared(root):
    return [f'--config.data.path={root / "data"}', f'--config.tokenizer.path={root / "autoencoder/tokenizer"}']


def encode(root, *more):
    config = ['--config', f'{CONFIG}runlocal', *shared(root)]
    return [*module('launch.encode_latents'), *config, '--dataset=my_latents', f'--data_dir={root / "data"}', *more]


@pytest.fixture(scope='module')
def latents(steps):
    root, do = steps
    said = do(encode(root, '--videos_per_shard=8'))
    assert 'train on them with --config.data.source=my_latents' in said
    return root, do


def test_five_commands(latents):
    """And training on latents is training on the videos, with the tokenizer in the step."""
    root, do = latents
    do(train(root / 'magi', 'runlocal', *shared(root), '--config.data.source=my_latents'))
    do(train(root / 'pixels', 'runlocal', *shared(root)))
    of_latents, of_videos = (read_metrics(root / name) for name in ('magi', 'pixels'))
    for name in ('train/loss', 'train/mse', 'train/vb', 'train/grad_norm', 'validation/loss'):
        assert of_latents[name].keys() == of_videos[name].keys() and len(of_latents[name]) >= 2
        for step, value in of_latents[name].items():
            np.testing.assert_allclose(value, of_videos[name][step], rtol=1e-5, err_msg=f'{name} {step}')
    (root / 'clip.mp4').write_bytes(video_kinds.good_files()['h264.mp4'][0])
    context = ['--context', str(root / 'clip.mp4'), '--context_frames', '5']
    folders = [f'--workdir={root / "magi"}', f'--out={root / "new"}']
    do([*module('launch.sample'), *folders, '--frames=8', *context])
    with np.load(root / 'new' / 'videos.npz') as made:
        assert made['videos'].shape == (1, 8, 64, 64, 3) and made['videos'][:, 5:].std() > 0
    assert (root / 'new' / '00.mp4').stat().st_size > 0


def test_runs_on_latents_are_measured_on_their_videos_or_the_stored_latents(latents, tmp_path):
    root, do = latents
    run_folder, videos, moved = tmp_path / 'magi', root / 'data' / 'my_videos', root / 'data' / 'moved'
    do(train(run_folder, 'runlocal', *shared(root), '--config.data.source=my_latents'))
    command = [*module('launch.evaluate'), f'--workdir={run_folder}', '--clips=2']
    do([*command, f'--out={tmp_path / "videos"}'])
    videos.rename(moved)
    try:
        do([*command, f'--out={tmp_path / "latents"}'])
    finally:
        moved.rename(videos)
    of_videos, of_latents = (
        json.loads((tmp_path / name / 'metrics.json').read_text()) for name in ('videos', 'latents')
    )
    assert of_videos['notes'] == [] and 'decoded from stored latents' in of_latents['notes'][0]
    assert of_videos['frames'] == of_latents['frames'] == [3, 4]
    assert of_videos['psnr']['mean'] != of_latents['psnr']['mean']


def test_latents_of_another_tokenizer_are_refused(latents, environment, tmp_path):
    root, do = latents
    other = ['--config.seed=1', f'--config.data.path={root / "data"}']
    do(train(tmp_path / 'other', 'autoencoder,runlocal', *other))
    overrides = [*shared(root), f'--config.tokenizer.path={tmp_path / "other/tokenizer"}']
    result = run(train(tmp_path / 'magi', 'runlocal', *overrides, '--config.data.source=my_latents'), environment)
    assert_one_line(result, 'my_latents holds latents of another tokenizer')
    result = run(train(tmp_path / 'ae', 'autoencoder,runlocal', *other, '--config.data.source=my_latents'), environment)
    assert_one_line(result, 'my_latents holds latents', 'my_videos')


def assert_same_files(folder, other):
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert names and names == sorted(path.name for path in other.iterdir() if path.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_two_processes_share_the_work(latents, environment, tmp_path):
    root, _ = latents
    pair = start_pair(encode(root, '--videos_per_shard=8', f'--data_dir={tmp_path}'), environment)
    statuses, said = finish(pair)
    assert statuses == [0, 0], said
    assert_same_files(*(prepared.dataset_folder('my_latents', str(folder)) for folder in (root / 'data', tmp_path)))


def test_killed_it_goes_on_to_the_same_bytes(latents, environment, tmp_path):
    root, do = latents
    whole = prepared.dataset_folder('my_latents', str(root / 'data'))
    command = encode(root, '--videos_per_shard=8', f'--data_dir={tmp_path}')
    reports = prepared.dataset_folder('my_latents', str(tmp_path)) / 'reports'
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(reports.glob('*.json')):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -9 and not (reports.parent / prepared.SUMMARY).exists()
    do(command)
    assert_same_files(whole, reports.parent)
    assert 'is complete: 4 shards' in do(encode(root, '--check', f'--data_dir={tmp_path}'))
