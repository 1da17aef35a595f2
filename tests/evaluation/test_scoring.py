"""A score from clips to page, through a toy network: what it compares with what, and that only its seed decides."""

import dataclasses
import html
import json

import jax
import numpy as np
import pytest

from magi_jax.config import DataConfig, MeshConfig
from magi_jax.evaluation import score_report, scoring
from magi_jax.evaluation.extractors import Extractor
from magi_jax.evaluation.frechet import Moments, frechet_distance
from magi_jax.evaluation.protocols import PROTOCOLS
from magi_jax.evaluation.real_clips import RealClips
from magi_jax.parallel.mesh import make_mesh

CLIPS = 21


def _network(weights, video):
    """Four time slots of random projections of coarse pixels."""
    slots = video.reshape(len(video), 4, -1, *video.shape[2:]).astype(np.float32)
    coarse = slots[:, :, :, ::8, ::8].reshape(len(video), 4, -1)
    return jax.numpy.tanh(coarse @ weights / 255)


def _extractor(window=16):
    weights = np.random.default_rng(0).standard_normal((window // 4 * 64 * 3, 6)).astype(np.float32) / 8
    return Extractor('toy', 'Toy', 'sha', {}, window, _network, weights, batch=2)


@pytest.fixture(scope='module')
def protocol():
    return dataclasses.replace(PROTOCOLS['shapes_five_frame'], clips=CLIPS, seeds=2)


@pytest.fixture(scope='module')
def real(protocol):
    return RealClips(DataConfig(), protocol)


def _mesh(devices):
    return make_mesh(MeshConfig(data=devices), jax.devices()[:devices])


def _generator(real, seeds=None):
    """Continues as the truth does, but with noise from the second generated frame on."""

    def generate(context, seed):
        if seeds is not None:
            seeds.append(seed)
        video = real.read(real.protocol.context_of, range(len(context)))
        assert (video[:, :5] == context).all()
        noise = np.random.default_rng(seed).integers(0, 60, video[:, 6:].shape, dtype=np.uint8)
        video = video.copy()
        video[:, 6:] = np.maximum(video[:, 6:], noise)
        return video

    return generate


def _score(real, devices=8, generate=None, extractor=None, cache=None):
    extractor = extractor or _extractor()
    measure = scoring.Measure('toy', extractor, extractor.on(_mesh(devices)), real, cache)
    return scoring.score(measure, generate or _generator(real), _darken, seed=3)


def _darken(video):
    return video // 2


@pytest.fixture(scope='module')
def scored(real):
    return _score(real)


def _flat(tree):
    return np.asarray(jax.tree.leaves(jax.tree.map(lambda x: x if isinstance(x, float) else None, tree)))


def test_one_device_and_eight_say_the_same(real, scored):
    one, eight = (_flat(measured.to_json()) for measured in (_score(real, devices=1)[0], scored[0]))
    assert len(one) > 20
    np.testing.assert_allclose(one, eight, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(_flat(_score(real)[0].to_json()), eight)


def test_distances_are_those_of_the_sets(real, scored):
    measured, _ = scored
    features = _extractor().on(_mesh(8))
    sets = {name: features(real.read(name, range(CLIPS))) for name in ('reference', 'others')}
    reference, others = (Moments.of(each.mean(axis=1)) for each in sets.values())
    assert measured.frechet.floor == pytest.approx(frechet_distance(reference, others))
    after = Moments.of(features(real.read('others', range(CLIPS)) // 2).mean(axis=1))
    assert measured.reconstruction == pytest.approx(frechet_distance(reference, after))
    alone = scoring.score_reconstruction(scoring.Measure('toy', _extractor(), features, real), _darken)
    assert (alone.mean, alone.floor) == (measured.reconstruction, measured.frechet.floor)
    truth = real.read('others', range(CLIPS))
    for draw in range(2):
        made = features(_generator(real)(truth[:, :5], scoring._batch_seed(3, draw, 0)))
        assert measured.frechet.draws[draw] == pytest.approx(frechet_distance(reference, Moments.of(made.mean(axis=1))))
        slots = (Moments.of(each[:, 2]) for each in (sets['reference'], made))
        assert measured.curve[12].draws[draw] == pytest.approx(frechet_distance(*slots))
    assert len(set(measured.frechet.draws)) == 2 and list(measured.curve) == [4, 8, 12, 16]
    # The first four frames are given: those of the floor's clips.
    assert measured.curve[4].draws[0] == pytest.approx(measured.curve[4].floor)
    assert len(measured.pixels['psnr']) == len(measured.pixels['ssim']) == 11 and measured.pixels['ssim'][0] == 1
    assert measured.pixels['psnr'][0] == 100 > measured.pixels['psnr'][1]


def test_every_batch_has_its_own_seed(real, monkeypatch):
    monkeypatch.setattr(scoring, 'BATCH', CLIPS)
    seeds = []
    _score(real, generate=_generator(real, seeds))
    assert len(seeds) == len(set(seeds)) == 2


def test_windows_of_a_long_video(real):
    measured, _ = _score(real, extractor=_extractor(window=4))
    assert list(measured.curve) == [4, 8, 12, 16]
    assert measured.frechet == measured.curve[16]


def test_frames_alone(real, scored):
    alone = RealClips(DataConfig(), dataclasses.replace(real.protocol, stills=5))
    measured, _ = _score(alone)
    assert list(measured.stills) == [1, 6, 11, 16] and not scored[0].stills
    assert (measured.frechet, measured.curve) == (scored[0].frechet, scored[0].curve)
    features = _extractor().on(_mesh(8))
    last = (np.repeat(alone.read(name, range(CLIPS))[:, 15:], 16, axis=1) for name in ('reference', 'others'))
    floor = frechet_distance(*(Moments.of(features(still).mean(axis=1)) for still in last))
    assert measured.stills[16].floor == pytest.approx(floor)
    assert measured.stills[1].draws[0] == pytest.approx(measured.stills[1].floor)  # a given frame


def test_cache_gives_the_same_without_reading_again(real, scored, tmp_path, monkeypatch):
    first, _ = _score(real, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    read = []
    whole = RealClips.batches
    monkeypatch.setattr(RealClips, 'batches', lambda self, name, size: read.append(name) or whole(self, name, size))
    again, _ = _score(real, cache=tmp_path)
    assert read == ['others']  # for the tokenizer's reconstructions
    assert _flat(again.to_json()).tolist() == _flat(first.to_json()).tolist()


def test_json_carries_the_protocol_and_the_warnings(scored, protocol):
    data = json.loads(json.dumps(scored[0].to_json(), allow_nan=False))
    assert data['metric'] == f'toy/n{CLIPS}' and data['protocol'] == 'toy'
    assert data['settings']['clips'] == CLIPS and data['settings']['covariance'] == 'n-1'
    assert set(data['frechet']) == {'mean', 'std', 'floor', 'draws'}
    wide = scoring._notes(protocol, type('Real', (), {'repeats': True}), width=CLIPS)
    assert len(wide) == 2 and 'are too few for 21 features' in wide[0]


def test_page_says_it_all(scored):
    measured, shown = scored
    assert shown.generated.shape == shown.training.shape == (scoring.EXAMPLE_CLIPS, 16, 64, 64, 3)
    content = score_report.ScoreContent('T', 'S', measured, shown, {'a': 1}, ['python -m x'], {'steps': '3'})
    page = score_report.render_score(content)
    said = [f'toy/n{CLIPS}', f'{measured.frechet.mean:.4g}', 'Coverage', 'PSNR', 'nearest', '"seeds": 2']
    for text in said:
        assert text in html.unescape(page), text
    assert page.count('image/webp') == 2 * scoring.EXAMPLE_CLIPS and 'color-scheme: light dark' in page
