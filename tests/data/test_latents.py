"""Latents of a dataset: encoded shard by shard, the same after a kill, and read as the clips they are of."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import latents, pipeline, prepared, sources
from magi_jax.data.latents import LatentSettings
from magi_jax.data.preparation import dataset, encoding, shards
from tests.data import video_kinds

FRAMES = 5
TOKENIZER = {'fingerprint': 'abc'}


def frame_wise(video):
    """Colours of cells of 8 x 8 pixels, and their darkness as log variance; exact, in any order of summation."""
    clips, frames = video.shape[:2]
    cells = np.float32(video.reshape(clips, frames, 8, 8, 8, 8, 3).astype(np.int64).sum((3, 5)))
    return cells, -cells


def temporal(video):
    """Two latent frames of five: the first frame, and the others weighted by their place."""
    cells, _ = frame_wise(video)
    mean = np.stack([cells[:, 0], sum(n * cells[:, n] for n in range(1, FRAMES))], axis=1)
    return mean, np.full_like(mean, -np.inf)


class Videos:
    """A source in memory, of noise."""

    skipped = ()

    def __init__(self, split):
        lengths, rng = (
            {'train': (40, 33, 21, 25, 50), 'validation': (20, 20, 20)}[split],
            np.random.default_rng(len(split)),
        )
        self.pixels = [rng.integers(0, 256, (length, 64, 64, 3), np.uint8) for length in lengths]
        self.lengths = np.asarray(lengths)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        pixels = self.pixels[int(index)]
        return sources.Video(f'video {index}', len(pixels), lambda frames: pixels[np.asarray(frames)], {})


@pytest.fixture(scope='module')
def data():
    open_source = sources.open_source
    with pytest.MonkeyPatch.context() as patch:
        known = {split: Videos(split) for split in ('train', 'validation')}
        patch.setattr(sources, 'open_source', lambda d, s: known[s] if d.source == 'noise' else open_source(d, s))
        yield DataConfig(source='noise', frames=FRAMES, max_interval=3, batch_size=4, flip_vertical=True, threads=0)


def settings_of(data, clips, **changes):
    same = {field.name: getattr(data, field.name) for field in dataclasses.fields(data) if hasattr(data, field.name)}
    known = {field.name for field in dataclasses.fields(LatentSettings)}
    shape = (2 if clips else FRAMES, 8, 8, 3)
    fixed = {'clips': clips, 'seed': 3, 'latent_shape': shape, 'variance': not clips, 'dtype': 'float32'}
    return LatentSettings(**{name: same[name] for name in known & same.keys()}, **fixed, videos_per_shard=2, **changes)


def jobs(data, folder, clips, part=0, parts=1, **changes):
    """(job, shards not yet done)."""
    data = dataclasses.replace(data, **changes)
    job = encoding.make_job('small', str(folder), data, settings_of(data, clips), TOKENIZER)
    planned = shards.planned_shards(prepared.dataset_folder('small', str(folder)), job.plan)
    return job, [shard for shard in planned[part::parts] if not shard.is_done()]


def make(data, folder, clips, **more):
    encode = temporal if clips else frame_wise
    job, todo = jobs(data, folder, clips, **more)
    for shard in todo:
        assert len(list(encoding.encode_shard(job, shard, encode, 3, 0))) == len(encoding.video_numbers(job, shard))


@pytest.fixture(scope='module', params=[0, 3], ids=['frame_wise', 'temporal'])
def made(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('latents')
    make(data, folder, request.param)
    encoding.merge('small', str(folder))
    return request.param, folder


def reading(data, folder):
    return dataclasses.replace(data, source='small', path=str(folder))


def files_of(folder):
    paths = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.lock']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def take(count, data, seed=0):
    batches = pipeline.train_batches(data, seed)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_training_reads_latents_of_its_clips(data, made):
    clips, folder = made
    (check_stored_clips if clips else check_cut_clips)(data, folder, clips)


def check_cut_clips(data, folder, _):
    """They are those of the very clips that are cut from the videos."""
    for of_videos, of_latents in zip(take(10, data), take(10, reading(data, folder)), strict=True):
        video = of_videos.pop('video')
        mean, log_variance = frame_wise(video)
        expected = of_videos | {'mean': mean, 'log_variance': log_variance}
        assert of_latents.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(of_latents[name], values, err_msg=name)


def check_stored_clips(data, folder, clips):
    """Each is of one of the clips that were drawn beforehand, and in the end of all."""
    pixels, seen = sources.open_source(data, 'train').pixels, {}
    for n, k in itertools.product(range(len(pixels)), range(clips)):
        indices, interval = encoding.draw_stored_clip(settings_of(data, clips), n, k, len(pixels[n]))
        for horizontal, vertical in itertools.product([1, -1], [1, -1]):
            clip = pixels[n][indices][:, ::vertical, ::horizontal]
            seen[temporal(clip[None])[0].tobytes()] = n, k, horizontal, vertical, interval
    drawn = set()
    for batch in take(40, reading(data, folder)):
        assert batch.keys() == {'mean', 'interval', 'example'} and batch['mean'].shape == (4, 2, 8, 8, 3)
        for mean, interval in zip(batch['mean'], batch['interval'], strict=True):
            *which, expected = seen[mean.tobytes()]
            assert interval == expected
            drawn.add(tuple(which))
    assert len(drawn) > 50  # of 5 videos, 3 clips, 4 flips: each drawn with probability .93


def test_validation_clips_start_each_video(data, made):
    clips, folder = made
    plain, stored = pipeline.validation_clips(data), pipeline.validation_clips(reading(data, folder))
    assert len(plain) == len(stored) == 3
    video, moments = plain.read([2, 0]), stored.read([2, 0])
    np.testing.assert_array_equal(moments['mean'], (temporal if clips else frame_wise)(video['video'])[0])
    np.testing.assert_array_equal(moments['interval'], [1, 1])
    np.testing.assert_array_equal(moments['example'], [2, 0])
    # Evaluation wants pixels, and finds the videos behind the latents.
    real = pipeline.EvalClips(reading(data, folder), 'validation', FRAMES).read([2, 0])
    np.testing.assert_array_equal(real['video'], video['video'])


def test_killed_or_shared_it_is_the_same_bytes(data, made, tmp_path):
    clips, folder = made
    job, todo = jobs(data, tmp_path, clips)
    encode = temporal if clips else frame_wise
    list(encoding.encode_shard(job, todo[0], encode, 3, 0))
    half = encoding.encode_shard(job, todo[1], encode, 3, 0)
    next(half)
    half.close()  # as a kill, but tidy
    assert not todo[1].is_done() and not list(todo[1].folder.glob('.*partial'))
    with pytest.raises(ConfigError, match='is not finished: run the command'):
        pipeline.train_batches(reading(data, tmp_path), 0)
    with pytest.raises(ConfigError, match=r'array_record\S+ is not finished: prepare it'):
        encoding.merge('small', str(tmp_path))
    for part in (1, 0):
        make(data, tmp_path, clips, part=part, parts=2)
    encoding.merge('small', str(tmp_path))
    assert files_of(tmp_path) == files_of(folder)


def test_check_finds_what_changed(data, made, tmp_path):
    clips, folder = made
    make(data, tmp_path, clips)
    encoding.merge('small', str(tmp_path))
    check = dataset.check('small', str(tmp_path), 1, encoding.check_latents)
    assert list(check) == [[]] * 5
    changed = sorted(prepared.dataset_folder('small', str(tmp_path)).glob('*.array_record-*'))[0]
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    found = [line for lines in dataset.check('small', str(tmp_path), 1, encoding.check_latents) for line in lines]
    assert found == [f'{changed.name}: the checksum does not match the report']
    job, (first, *_) = jobs(data, tmp_path / 'nan', clips)
    with pytest.raises(FloatingPointError, match='not finite'):
        list(encoding.encode_shard(job, first, lambda video: (np.nan * temporal(video)[0],) * 2, 3, 0))
    assert not first.path.exists()


def test_what_does_not_fit_is_refused(data, made):
    clips, folder = made
    here = reading(data, folder)
    with pytest.raises(ConfigError, match='started with flip_vertical = True, not False'):
        jobs(data, folder, clips, flip_vertical=False)
    other = settings_of(data, clips)
    with pytest.raises(ConfigError, match='another tokenizer or other latent statistics'):
        encoding.make_job('small', str(folder), data, other, {'fingerprint': 'abd'})
    with pytest.raises(ConfigError, match='small holds latents, not videos'):
        sources.open_source(here, 'train')
    with pytest.raises(ConfigError, match=r'small holds latents of data.height = 64, not 32'):
        pipeline.train_batches(dataclasses.replace(here, height=32), 0)
    longer = dataclasses.replace(here, frames=22)
    with pytest.raises(
        ConfigError, match='data.frames = 5, not 22' if clips else '1 train videos .* fewer than 22 latent'
    ):
        pipeline.train_batches(longer, 0)
    assert latents.describe(here).fingerprint == 'abc' and latents.describe(data) is None


def test_names_of_videos_that_are_not_utf8_are_kept_as_text(data, tmp_path):
    (tmp_path / 'videos' / 'train').mkdir(parents=True)
    (tmp_path / 'videos' / 'validation').mkdir()
    for split in ('train', 'validation'):
        name = os.path.join(os.fsencode(tmp_path / 'videos' / split), b'caf\xe9:1.mp4')
        with open(name, 'wb') as file:
            file.write(video_kinds.encode('libx264', 'mp4'))
    data = dataclasses.replace(data, source='video_folder', path=str(tmp_path / 'videos'), height=64, width=64)
    make(data, tmp_path / 'out', 0)
    encoding.merge('small', str(tmp_path / 'out'))
    records = tfds.data_source('small', data_dir=tmp_path / 'out', split='train')
    assert {record['video_id'] for record in records} == {rb'train/caf\xe9:1.mp4'}
    check = dataset.check('small', str(tmp_path / 'out'), 1, encoding.check_latents)
    assert all(not found for found in check)
