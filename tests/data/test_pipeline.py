"""Batches are a function of (seed, step), whatever the hosts, threads and restarts."""

import dataclasses
import itertools

import numpy as np
import pytest

from magi_jax.config import ConfigError, DataConfig
from magi_jax.data import pipeline
from magi_jax.data.builders import bouncing_objects as bouncing


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bouncing.BouncingObjects.BUILDER_CONFIGS[0], 'counts', {'train': 7, 'test': 5})
        folder = str(tmp_path_factory.mktemp('tfds'))
        bouncing.prepare('bouncing_objects/shapes', folder)
        yield DataConfig(path=folder, frames=5, max_interval=3, batch_size=4, flip_vertical=True, threads=0)


def take(count, data, *args, **kwargs):
    batches = pipeline.train_batches(data, *args, **kwargs)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_shapes_and_examples(data):
    batches = take(6, data, 0)
    for step, batch in enumerate(batches):
        assert batch['video'].shape == (4, 5, 64, 64, 3) and batch['video'].dtype == np.uint8
        assert batch['interval'].dtype == batch['example'].dtype == np.int32
        assert batch['example'].tolist() == list(range(4 * step, 4 * step + 4))
        assert set(batch['interval']) <= {1, 2, 3}


def test_seeds_differ(data):
    assert (take(1, data, 1)[0]['video'] != take(1, data, 2)[0]['video']).any()


def test_every_epoch_draws_new_clips(data):
    single = dataclasses.replace(data, batch_size=7, frames=1, flip_horizontal=False, flip_vertical=False)
    frames = {clip.tobytes() for batch in take(10, single, 0) for clip in batch['video']}
    assert len(frames) > 60  # of 70, from 7 videos of 400 frames


def test_epochs_are_permutations_in_new_orders(data):
    source = [bouncing.make_video('shapes', 'train', index) for index in range(7)]
    plain = dataclasses.replace(data, batch_size=7, frames=1, flip_horizontal=False, flip_vertical=False)
    orders = []
    for batch in take(3, plain, 0):
        found = [
            [i for i, v in enumerate(source) if (v['frames'] == clip[0]).all((1, 2, 3)).any()]
            for clip in batch['video']
        ]
        orders.append([match[0] for match in found])
        assert sorted(orders[-1]) == list(range(7))
    assert orders[0] != orders[1] or orders[1] != orders[2]


@pytest.mark.parametrize('hosts', [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(data, hosts):
    alone = take(4, data, 3)
    shares = [take(4, data, 3, rows=range(i * 4 // hosts, (i + 1) * 4 // hosts)) for i in range(hosts)]
    together = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*shares, strict=True)
    ]
    assert_same(alone, together)


def test_threads_do_not_change_the_batches(data):
    assert_same(take(6, data, 3), take(6, dataclasses.replace(data, threads=2), 3))


def test_a_restart_continues_also_on_more_hosts(data):
    whole = take(6, data, 3)
    assert_same(whole[4:], take(2, data, 3, start_step=4))
    scattered = take(2, data, 3, start_step=4, rows=[1, 3])  # of a host on a torus
    assert_same([{key: value[[1, 3]] for key, value in batch.items()} for batch in whole[4:]], scattered)


def test_the_interval_is_the_true_one(data):
    unflipped = dataclasses.replace(data, flip_horizontal=False, flip_vertical=False)
    videos = [bouncing.make_video('shapes', 'train', index)['frames'] for index in range(7)]
    for batch in take(3, unflipped, 5):
        for clip, interval in zip(batch['video'], batch['interval'], strict=True):
            cuts = (
                video[start : start + 4 * interval + 1 : interval]
                for video in videos
                for start in range(400 - 4 * interval)
            )
            assert any((cut == clip).all() for cut in cuts)


def test_flips_of_whole_clips(data):
    both = take(8, dataclasses.replace(data, flip_horizontal=True, flip_vertical=False), 6)
    none = take(8, dataclasses.replace(data, flip_horizontal=False, flip_vertical=False), 6)
    flipped = 0
    for batch, plain in zip(both, none, strict=True):
        for clip, original in zip(batch['video'], plain['video'], strict=True):
            mirrored = (clip == original[:, :, ::-1]).all()
            assert mirrored or (clip == original).all()
            flipped += mirrored
    assert 6 < flipped < 26  # of 32


def test_eval_batches_are_fixed_and_labelled(data):
    batches = list(pipeline.eval_batches(data, 'test', frames=6, count=5, batch=3, interval=2))
    assert [len(batch['video']) for batch in batches] == [3, 2]
    made = bouncing.make_video('shapes', 'test', 4)
    last = {key: value[-1] for key, value in batches[-1].items()}
    np.testing.assert_array_equal(last['video'], made['frames'][:12:2])
    np.testing.assert_array_equal(last['centres'], made['centres'][:12:2])
    assert last['count'] == made['count'] and last['interval'] == 2 and last['example'] == 4
    np.testing.assert_array_equal(last['colours'], made['colours'])
    clips = pipeline.EvalClips(data, 'test', frames=6, interval=2)
    scattered = clips.read([4, 0])
    for key in scattered:
        np.testing.assert_array_equal(scattered[key], [batches[1][key][1], batches[0][key][0]])
    assert len(clips) == 5
    with pytest.raises(ConfigError, match='5 of 5 videos'):
        pipeline.eval_batches(data, 'test', frames=201, count=5, batch=3, interval=2)
