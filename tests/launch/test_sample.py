"""launch.sample as its user runs it, and the same videos from the library."""

import io
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import magi_jax
from magi_jax.checkpoint import save_config
from magi_jax.config import ConfigError, MagiConfig, MeshConfig, override
from magi_jax.data.video_file import fit, read_video, write_gif, write_mp4
from magi_jax.parallel.mesh import make_mesh
from tests.launch.commands import ROOT, assert_one_line, module, run, train_command
from tests.launch.forked import run_forked

FRAMES = 6  # the trained clips have 4: the window slides
GREY = np.full((2, 2, 32, 32, 3), 128, np.uint8)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, environment, videos):
    folder = tmp_path_factory.mktemp('run')
    # Fast enough to leave the initial weights, which draw the same grey whatever the noise.
    fast = ['--config.optim.learning_rate=0.02', '--config.optim.warmup_steps=0', '--config.optim.ema_decay=0.5']
    result = run(train_command(folder, videos, '--config.train.steps=8', *fast), environment)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='module')
def generator(workdir):
    trained = magi_jax.load(workdir)
    return trained.with_sampler(override(trained.config.sampler, ['temperature=1']))


@pytest.fixture
def command(workdir, tmp_path):
    """launch.sample on the trained run, writing to tmp_path/out."""

    def words(*arguments, out='out', frames=FRAMES):
        fixed = ['--workdir', str(workdir), '--out', str(tmp_path / out), '--frames', str(frames)]
        return [*module('launch.sample'), *fixed, '--sampler', 'temperature=1', *arguments]

    return words


@pytest.fixture
def sample(environment, command):
    return lambda *arguments, **options: run(command(*arguments, **options), environment)


@pytest.fixture(scope='module')
def footage(tmp_path_factory):
    """A GIF of 8 frames, twice as wide as the run's; few colours, so that it reads back exactly."""
    path, video = tmp_path_factory.mktemp('footage') / 'wide.gif', np.zeros((8, 32, 64, 3), np.uint8)
    for t in range(8):
        video[t, 4:20, 16 + 3 * t : 27 + 3 * t] = (0, 0, 255)
    write_gif(path, video, 10)
    return path


def _arrays(folder):
    with np.load(folder / 'videos.npz') as file:
        return file['videos'], json.loads(str(file['settings']))


def test_videos_from_nothing(sample, tmp_path, generator):
    (tmp_path / 'again' / '.unfinished').mkdir(parents=True)  # of a call that was killed while it wrote
    (tmp_path / 'again' / '.unfinished' / '07.mp4').touch()
    for out in ('out', 'again'):
        result = sample('--num', '2', '--seed', '3', out=out)
        assert result.returncode == 0, result.stderr
        assert f'2 videos of {FRAMES} frames in {tmp_path / out}' in result.stdout
    names, again = (sorted(path.name for path in (tmp_path / out).iterdir()) for out in ('out', 'again'))
    assert names == again == ['00.gif', '00.mp4', '01.gif', '01.mp4', 'videos.npz']
    for name in names[:-1]:  # a zip keeps the time
        assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()
    videos, settings = _arrays(tmp_path / 'out')
    assert videos.shape == (2, FRAMES, 32, 32, 3) and videos.dtype == np.uint8 and settings['seed'] == 3
    assert settings['sampler.temperature'] == 1 and settings['step'] == 8
    np.testing.assert_array_equal(_arrays(tmp_path / 'again')[0], videos)
    for name in ('00.mp4', '01.mp4'):
        assert read_video(tmp_path / 'out' / name).shape == (FRAMES, 32, 32, 3)
    # The library gives the same videos; another seed or temperature gives others.
    np.testing.assert_allclose(generator.sample(frames=FRAMES, num=2, seed=3), videos, atol=1)
    cooler = generator.sample(frames=FRAMES, num=2, seed=3, temperature=0.5)
    for other in generator.sample(frames=FRAMES, num=2, seed=4), cooler:
        assert abs(other.astype(int) - videos).max() > 1


@pytest.mark.parametrize('arguments', [['--seed', '1'], ['--batch', '1'], ['--stream']])
def test_videos_of_another_call_stay(command, environment, tmp_path, arguments):
    folder = tmp_path / 'out'
    folder.mkdir()
    for name in ('00.mp4', '00.gif', 'videos.npz'):
        (folder / name).write_text(name)
    refused = f'{folder} holds files of another call (00.gif, 00.mp4, ...): give another --out'
    assert_one_line(run_forked(command(*arguments), environment), refused)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: name for name in ('00.mp4', '00.gif', 'videos.npz')
    }


def test_context_is_cropped_spaced_and_kept(sample, tmp_path, footage):
    result = sample('--context', str(footage), '--context_frames', '2', '--interval', '2', '--num', '2')
    assert result.returncode == 0, result.stderr
    videos, settings = _arrays(tmp_path / 'out')
    assert videos.shape == (2, FRAMES, 32, 32, 3) and settings['interval'] == 2
    centre = read_video(footage)[:, :, 16:48]
    for video in videos:
        np.testing.assert_array_equal(video[:2], centre[[0, 2]])
    assert (videos[0, 2:] != videos[1, 2:]).any()


def test_context_of_another_size_is_resized(sample, tmp_path):
    y, x = np.mgrid[:50, :70]
    video = np.uint8(np.stack([2 * y + x, x, 2 * y + 40], axis=-1))[None]
    write_mp4(tmp_path / 'large.mp4', video, 8)
    result = sample('--context', str(tmp_path / 'large.mp4'), frames=2)
    assert result.returncode == 0, result.stderr
    videos, _ = _arrays(tmp_path / 'out')
    np.testing.assert_allclose(videos[0, :1].astype(int), fit(video, 32, 32), atol=4)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--workdir', '/nowhere'], ['/nowhere holds no run']),
        (['--context', '/nowhere.mp4'], ['/nowhere.mp4']),
        (['--context', '{broken}'], ['broken.mp4', 'cannot be']),
        (['--context', '{footage}', '--context_frames', '5', '--interval', '2'], ['has 8 frames', 'need 9: lower']),
        (['--context', '{footage}', '--context_frames', '7'], ['7 context frames are more than the 6 frames']),
        (['--sampler', 'heat=3'], ["'heat=3'", 'temperature']),
        (['--sampler', 'temperature=hot'], ["temperature = 'hot' is of type str: give a number"]),
        (['--interval', '3'], ['interval = 3 is out of range', '1 to 2']),
        (['--num', '0'], ['--num=0']),
        (['--seed', '4294967296'], ['--seed=4294967296', '[0, 4294967295]']),
    ],
)
def test_mistakes_are_one_line(command, environment, tmp_path, footage, arguments, words):
    (tmp_path / 'broken.mp4').write_bytes(b'\0' * 99)
    places = {'footage': footage, 'broken': tmp_path / 'broken.mp4'}
    asked = command(*(argument.format(**places) for argument in arguments))
    assert_one_line(run_forked(asked, environment), *words)
    assert not (tmp_path / 'out').exists()


def test_a_killed_set_is_completed_and_no_other(sample, command, environment, tmp_path, generator):
    """Six videos, two at a time; nothing is half there, and the whole is what the library makes at once."""
    asked, folder = ['--num', '6', '--batch', '2', '--seed', '3'], tmp_path / 'out'
    process = subprocess.Popen(command(*asked, frames=40), env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(folder.glob('*.mp4')) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*.mp4')}
    assert 0 < len(before) < 6 and all(len(read_video(path)) == 40 for path in before)
    resumed = sample(*asked, '--stream', frames=40)
    assert resumed.returncode == 0, resumed.stderr
    assert f'{6 - len(before)} videos of 40 frames sampled; 6 videos are in {folder}' in resumed.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(list(folder.iterdir())) == 7  # the settings too, and nothing half
    expected = generator.sample(frames=40, num=6, seed=3).astype(int)
    for number in range(6):
        errors = [np.abs(read_video(folder / f'{number:06}.mp4') - other).mean() for other in expected]
        assert np.argmin(errors) == number and errors[number] < 0.25 * np.partition(errors, 1)[1], errors
    assert_one_line(
        run_forked(command(*asked[:-1], '4', frames=40), environment),
        f'{folder} holds videos sampled with seed = 3, not 4',
        '--out',
    )


MEMORY_AND_TIME = """
import dataclasses, json, sys, time
import magi_jax
from magi_jax.data.video_file import mp4_writer
generator, marks = magi_jax.load(sys.argv[1]), []
generator = generator.with_sampler(dataclasses.replace(generator.config.sampler, mask_steps=4, denoise_steps=40))
with mp4_writer(sys.argv[2], 8) as write:
    for frame in generator.stream(frames=1001, num=8):
        write(frame[0])
        pages = int(open('/proc/self/statm').read().split()[1])
        marks.append((time.perf_counter(), pages))
print(json.dumps(marks))
"""


@pytest.mark.slow
def test_a_thousand_frames_take_no_more_memory_or_time_than_a_hundred(environment, workdir, tmp_path):
    words = [sys.executable, '-c', MEMORY_AND_TIME, str(workdir), str(tmp_path / 'long.mp4')]
    result = run(words, {**environment, 'XLA_FLAGS': ''})
    assert result.returncode == 0, result.stderr
    seconds, pages = np.asarray(json.loads(result.stdout)).T
    # What else runs on the machine makes frames slower, never faster: the lower quartile.
    first, last = (np.quantile(np.diff(seconds)[part], 0.25) for part in (slice(50, 350), slice(700, 1000)))
    megabytes = pages * os.sysconf('SC_PAGE_SIZE') / 2**20
    print(f'MB after 100, 1000 frames: {megabytes[[100, 1000]]}; ms a frame early, late: {1e3 * first} {1e3 * last}')
    assert len(read_video(tmp_path / 'long.mp4')) == 1001
    assert megabytes[1000] <= 1.05 * megabytes[100]
    assert last == pytest.approx(first, rel=0.1)


def test_autoencoder_is_no_generator(command, environment, tmp_path):
    save_config(tmp_path, MagiConfig(objective='autoencoder'))
    assert_one_line(
        run_forked(command('--workdir', str(tmp_path)), environment), 'holds an autoencoder, not a generator'
    )


def test_run_without_a_checkpoint(command, environment, tmp_path, workdir):
    save_config(tmp_path, magi_jax.load(workdir).config)
    assert_one_line(run_forked(command('--workdir', str(tmp_path)), environment), 'no checkpoint in', 'train first')


def test_library_continues_arrays_of_the_right_kind(generator):
    context = np.random.default_rng(1).integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
    made = generator.sample(context, 3, interval=2)
    assert made.shape == (3, 3, 32, 32, 3) and (made[:, :2] == context).all()
    np.testing.assert_array_equal(generator.sample(context, 2), context)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num': 0}, 'num = 0 is out of range: give a whole number, 1 or more'),
        ({'num': 3, 'context': GREY}, 'num = 3 does not fit 2 clips of context, numbers or prompts: leave num out'),
        ({'frames': 0}, 'frames = 0 is out of range'),
        ({'frames': 1, 'context': GREY}, '2 context frames are more than the 1 frames requested: raise frames'),
        ({'context': list(GREY)}, 'context is a list: give an array'),
        ({'context': GREY / 255}, r'context is float64 .*np\.round\(255 \* context\)'),
        ({'context': GREY[0]}, r'for one clip context\[None\]'),
        ({'context': GREY[:, :, :16]}, r'uint8 \[2, 2, 16, 32, 3\], not uint8 \[clips, frames, 32, 32, 3\]: resize'),
        ({'interval': 0}, r'interval = 0 .* 1 to 2 \(data\.max_interval of this run\)'),
        ({'numbers': [1, 2, 3], 'context': GREY}, '3 numbers do not fit 2 clips of context: give one for each clip'),
        ({'seed': 2**32}, 'seed = 4294967296 is out of range: .* 0 to 4294967295'),
        ({'seed': -1}, 'seed = -1 is out of range'),
        ({'prompt': 'a disc'}, "prompt = 'a disc': this run was trained without text, leave prompt out"),
        ({'temprature': 0.9}, "'temprature' is not a sampler field: did you mean 'temperature'"),
        ({'frame': 9}, "'frame' is not a sampler field: did you mean 'frames'"),
        ({'denoise_steps': 'ten'}, "denoise_steps = 'ten'"),
    ],
)
def test_library_refuses_wrong_arguments_in_one_line(generator, arguments, message):
    for call in generator.sample, generator.stream:
        with pytest.raises(ValueError, match=message) as error:
            call(**arguments)
        assert '\n' not in str(error.value)


def test_library_refuses_parts_of_no_clips_and_videos_that_are_none(generator):
    with pytest.raises(ConfigError, match='per_device_batch = 0 is out of range'):
        generator.sample(per_device_batch=0)
    with pytest.raises(ConfigError, match='per_device_batch = 0 is out of range'):
        generator.reconstruct(GREY, per_device_batch=0)
    with pytest.raises(ConfigError, match='video is a list'):
        generator.reconstruct(list(GREY))


def test_a_model_with_position_tables_keeps_its_size(generator):
    with pytest.raises(ConfigError, match='32x64 is not the trained size of this magi: give 32x32'):
        generator.with_size(32, 64)
    assert generator.with_size(32, 32).config == generator.config


def test_sampler_fields_are_keywords_of_one_call(generator):
    cool = generator.with_sampler(override(generator.config.sampler, ['temperature=0.5']))
    made = cool.sample(frames=3, num=2)
    np.testing.assert_array_equal(generator.sample(frames=3, num=2, temperature=np.float32(0.5)), made)
    streamed = np.stack(list(generator.stream(frames=3, num=2, temperature=0.5)), axis=1)
    np.testing.assert_allclose(streamed.astype(int), made, atol=1)
    assert generator.config.sampler.temperature == 1


def test_a_bar_counts_the_frames_of_all_parts_in_a_terminal_and_nothing_is_printed_elsewhere(
    generator, monkeypatch, capfd
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for options, shown in [({}, True), ({'per_device_batch': 1}, True), ({'progress': False}, False)]:
        monkeypatch.setattr(sys, 'stderr', Terminal())
        generator.sample(frames=3, num=16, **options)
        bar = sys.stderr.getvalue()
        total = 6 if options else 3  # of per_device_batch: 16 clips on 8 devices
        assert (f'/{total} [' in bar and 'frame' in bar) if shown else not bar
        monkeypatch.undo()
    generator.sample(frames=3, num=16)
    assert capfd.readouterr() == ('', '')


def test_a_generator_and_its_tokenizer_are_told_in_a_line(generator, workdir):
    text = repr(generator)
    assert text.startswith(f"Generator('{workdir}', step=8, 1 blocks of width 16, ") and len(text) < 300
    assert text.endswith(' parameters, 32x32 pixels, tokenizer=identity)')
    assert repr(generator.tokenizer) == 'Tokenizer(identity, 192 channels of 8x8 pixels, 0 parameters)'


def test_library_uses_all_devices_and_they_change_nothing(generator):
    """Eight clips, one on each of the test's eight devices, against the clips made by every device alike."""
    context = np.random.default_rng(2).integers(0, 256, (8, 1, 32, 32, 3), np.uint8)
    shared = generator.sample(context, 3)
    alone = generator.sample(context[:3], 3)  # three clips cannot be shared by eight devices
    np.testing.assert_allclose(shared[:3].astype(int), alone, atol=1)


def test_parts_are_the_same_bits_on_any_number_of_devices(workdir, monkeypatch):
    """A device makes two clips at once, whether it is one of eight or alone."""
    video = np.random.default_rng(4).integers(0, 256, (11, 3, 32, 32, 3), np.uint8)
    make, made = magi_jax.generator.sample_clips, {}
    for devices, sizes in ((8, [16]), (1, 6 * [2])):
        mesh, seen = make_mesh(MeshConfig(data=devices), jax.devices()[:devices]), []

        def counted(seen=seen, **inputs):
            seen.append(len(inputs['context']))
            return make(**inputs)

        for user in magi_jax.generator, magi_jax.reconstruction:
            monkeypatch.setattr(user, 'all_devices', lambda mesh=mesh: mesh)
        monkeypatch.setattr(magi_jax.generator, 'sample_clips', counted)
        run = magi_jax.load(workdir)
        made[devices] = run.sample(video[:, :1], 3, per_device_batch=2), run.reconstruct(video, per_device_batch=2)
        assert seen == sizes
    for shared, alone in zip(made[8], made[1], strict=True):
        assert len(shared) == 11 and len(np.unique(shared[:, 2], axis=0)) == 11
        np.testing.assert_array_equal(shared, alone)
