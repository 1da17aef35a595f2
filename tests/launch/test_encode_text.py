"""launch.encode_text as a command: a dataset with its own captions, errors of one line, and a kill."""

import os
import subprocess
import time

import pytest

from magi_jax.config import DataConfig, TextConfig
from magi_jax.data import pipeline, prepared, texts
from tests.data import tiny_captions
from tests.data.test_latents import files_of
from tests.launch.commands import assert_one_line, module, run
from tests.launch.forked import run_forked

SIZES = ['--encoder=words', '--length=12', '--width=16']


def command(folder, *more):
    return [*module('launch.encode_text'), f'--dataset={tiny_captions.NAME}', f'--data_path={folder}', *SIZES, *more]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny_captions.build(tmp_path_factory.mktemp('data'), train=7, validation=2, test=3)


def test_captions_are_encoded_once(data, environment):
    for _ in range(2):
        result = run_forked(command(data.path), environment)
        assert result.returncode == 0, result.stderr
        assert 'test 3, train 7, validation 2 captions' in result.stdout
        words = 'train on them with --config.text.encoder=words --config.text.length=12 --config.text.width=16'
        assert words in result.stdout
    batches = pipeline.train_batches(data, 0, text=TextConfig('words', 12, 16))
    assert next(batches)['text_mask'].any(1).all()
    batches.close()


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['--width=17'], ('width', 'add --replace to delete it and encode again')),
        (['--dataset=my_videos'], ('no dataset my_videos', 'launch.prepare_data')),
        (['--captions=none.jsonl'], ('none.jsonl',)),
        (['--dataset=video_folder', '--data_path=/nowhere'], ("data.path = '/nowhere' is not a folder",)),
    ],
)
def test_errors_are_one_line(data, environment, more, words):
    run_forked(command(data.path), environment)
    assert_one_line(run_forked(command(data.path, *more), environment), *words)


def test_training_without_texts_says_the_command(tmp_path, environment):
    """Also with :runlocal, on a machine that has the videos only."""
    tiny_captions.build(tmp_path / 'data', train=8, validation=2, test=2)
    quickstart = ['--config=configs/quickstart_videomar.py:runlocal', f'--config.data.path={tmp_path / "data"}']
    said = run_forked([*module('launch.train'), *quickstart, f'--workdir={tmp_path / "run"}'], environment)
    words = f'--dataset {tiny_captions.NAME} --data_path {tmp_path / "data"} --encoder words --length 16 --width 64'
    assert_one_line(said, f'are not encoded by words: run launch.encode_text {words}')


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(tmp_path, environment):
    counts = {'train': 200, 'validation': 3, 'test': 5}
    whole, killed = (tiny_captions.build(tmp_path / name, **counts) for name in ('whole', 'killed'))
    folders = [prepared.dataset_folder(*texts.location(data, 'words')) for data in (whole, killed)]
    shards_of_two = '--videos_per_shard=2'
    assert run(command(whole.path, shards_of_two), environment).returncode == 0
    reports = folders[1] / 'reports'
    with subprocess.Popen(command(killed.path, shards_of_two), env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(reports.glob('*.json'))) < 10:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -9 and not (folders[1] / prepared.SUMMARY).exists()
    done = {path: path.stat().st_mtime_ns for path in reports.glob('*.json')}
    assert 10 <= len(done) < 105
    result = run(command(killed.path, shards_of_two), environment)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was done is not done again
    assert files_of(folders[0]) == files_of(folders[1])
    checked = run(command(killed.path, '--check'), environment)
    assert checked.returncode == 0 and 'text/words is complete: 105 shards' in checked.stdout, checked.stderr


@pytest.mark.slow
def test_a_language_model_encodes_a_folder_of_videos(tmp_path, environment, videos):
    """The whole path with a randomly initialised Qwen2-VL, of which the language half is used."""
    pytest.importorskip('transformers', reason='needs transformers and torch: pip install -e .[text]')
    from magi_jax.text_encoders.api import open_encoder
    from tests.text_encoders import tiny_models

    tiny_models.save('qwen2_vl', tmp_path / 'qwen')
    names = [path.relative_to(videos).as_posix() for path in videos.rglob('*.mp4')]
    (tmp_path / 'captions.csv').write_text(
        '\n'.join(['video_id,caption', *(f'{name},a disc moves down' for name in names)])
    )
    model = ['--encoder', str(tmp_path / 'qwen'), '--length=12', '--batch=4', '--system_prompt=describe: ']
    arguments = [f'--data_path={videos}', f'--captions={tmp_path / "captions.csv"}', *model]
    result = run([*module('launch.encode_text'), *arguments], environment)
    assert result.returncode == 0 and 'train 6, validation 2 captions' in result.stdout, result.stderr
    text = TextConfig(str(tmp_path / 'qwen'), 12, tiny_models.WIDTH)
    data = DataConfig(
        source='video_folder',
        path=os.fspath(videos),
        frames=4,
        height=32,
        width=32,
        batch_size=2,
        flip_horizontal=False,
    )
    batch = pipeline.validation_clips(data, text).read([0, 1])
    encoder = open_encoder(text, prepared.dataset_folder(*texts.location(data, text.encoder)))
    assert encoder.system_prompt == 'describe: '
    states, mask = encoder.encode(['a disc moves down'])
    assert (batch['text_mask'] == mask).all() and abs(batch['text'] - states).max() < 1e-2
