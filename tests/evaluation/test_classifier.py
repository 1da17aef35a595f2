"""The embedded classifier: its labels are true, its file is the measured one, and its distance finds known faults."""

import json
import shutil

import jax
import numpy as np
import pytest
from einops import reduce

from magi_jax.config import ConfigError, MeshConfig
from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.evaluation import classifier
from magi_jax.evaluation import classifier_training as training
from magi_jax.evaluation.extractors import make_extractor
from magi_jax.evaluation.frechet import Moments, frechet_distance
from magi_jax.parallel.mesh import make_mesh
from tests.evaluation.corruptions import CORRUPTIONS

CLIPS = 256


def _clips(kind, count=12):
    return list(training.draw_clips(kind, 'validation', range(count), 1, 0))


def test_labels_of_shapes_are_what_the_clip_shows(monkeypatch):
    monkeypatch.setattr(training, 'NOISE', 0.0)
    rng = np.random.default_rng(0)
    seen = set()
    for drawn in _clips('shapes'):
        clip = training.augment(rng, 'shapes', drawn)
        frames, centres, labels, colours, chosen = clip.frames, clip.centres, clip.labels, clip.colours, clip.interval
        made = training.make_labels('shapes', clip)
        assert (made['interval'] == chosen).all() and (made['object'] > 0).sum() == 8 * (colours >= 0).sum()
        edges = abs(np.diff(frames.astype(int), axis=2)).max()  # a blur leaves no step as high as between two colours
        assert (made['sharp'] == (edges > 125)).all(), (edges, clip.sharp)
        for slot in range(bouncing.MAX_OBJECTS):
            if colours[slot] < 0:
                continue
            column, row = centres[3, slot].astype(int)
            assert tuple(frames[3, row, column]) == list(bouncing.PALETTE.values())[colours[slot]]
            assert (made['object'][:, colours[slot]] == labels[slot] + 1).all()
            steps = np.diff(centres[2:5, slot, 0])  # time slot 1
            right = made['rightward'][1, colours[slot]]
            seen.add(int(right))
            assert right == (training.NO_LABEL if (abs(steps) < 0.3 * (chosen + 1)).any() or steps[0] * steps[1] < 0
                             else int(steps[0] > 0))  # fmt: skip
    assert seen >= {0, 1}


def test_labels_of_digits_count_them():
    for clip in _clips('digits', 4):
        made, labels, centres = training.make_labels('digits', clip), clip.labels, clip.centres
        assert made['object'].sum(axis=1).tolist() == [2] * 8
        assert made['object'][0, labels[0]] == (2 if labels[0] == labels[1] else 1)
        moving = np.diff(centres[2:4, :2, 0], axis=0)[0] > 0
        assert made['rightward'][1, 0] in (training.NO_LABEL, moving.sum())


def test_weights_are_small_and_good_enough():
    for path in classifier.FOLDER.glob('*.npz'):
        assert path.stat().st_size < 1_000_000
        trained = classifier.load_classifier(path.stem)
        assert set(trained.accuracies) == {*classifier.FACTORS[path.stem], 'count'}
        assert min(trained.accuracies.values()) >= classifier.GATE


def test_other_weights_than_those_measured_are_refused(tmp_path):
    folder = shutil.copytree(classifier.FOLDER, tmp_path / 'weights')
    facts = json.loads((folder / 'shapes.json').read_text())
    weak = facts | {'accuracies': facts['accuracies'] | {'rightward': 0.899}}
    (folder / 'shapes.json').write_text(json.dumps(weak))
    with pytest.raises(ConfigError, match='must not score: rightward 0.899, each must reach 0.9'):
        classifier.load_classifier('shapes', folder)
    (folder / 'shapes.json').write_text(json.dumps(facts | {'sha256': '0' * 64}))
    with pytest.raises(ConfigError, match='is not the file that shapes.json describes'):
        classifier.load_classifier('shapes', folder)
    with pytest.raises(ConfigError, match='no classifier for shapes'):
        classifier.load_classifier('shapes', tmp_path)


@pytest.fixture(scope='module')
def extractor():
    return make_extractor('classifier', 'bouncing_objects/shapes')


@pytest.fixture(scope='module')
def features(extractor):
    return extractor.on(make_mesh(MeshConfig()))


def _real(numbers):
    videos = [bouncing.make_video('shapes', 'test', number, 48) for number in numbers]
    return np.stack([video['frames'][32:] for video in videos]), np.stack([video['labels'] for video in videos])


@pytest.fixture(scope='module')
def sets():
    """Reference, others, and labels of the others."""
    return _real(range(CLIPS))[0], *_real(range(CLIPS, 2 * CLIPS))


def test_eight_devices_see_what_one_does(extractor, features, sets):
    one = extractor.on(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    few = sets[0][:11]
    np.testing.assert_allclose(one(few), features(few), rtol=1e-6, atol=1e-6)


def _faults(features, reference, others, labels, names):
    """The floor, and the distances of clips with these known faults, of those too where a shape is missing."""

    def moments(videos):
        return Moments.of(reduce(features(videos), 'n s d -> n d', 'mean'))

    real = moments(reference)
    faulty = {f'no {shape}': others[~(labels == i).any(axis=1)] for i, shape in enumerate(bouncing.SHAPES)}
    faulty |= {name: CORRUPTIONS[name](others) for name in names if name in CORRUPTIONS}
    return frechet_distance(real, moments(others)), [frechet_distance(real, moments(faulty[name])) for name in names]


def test_known_faults_are_far_above_the_floor(features, sets):
    """So few clips have a high floor, from which only some of the faults stand out."""
    floor, distances = _faults(features, *sets, ['noise', 'blur', 'shuffle', 'no square'])
    assert min(distances) > 3 * floor > 0, (floor, distances)


@pytest.mark.slow
def test_all_known_faults_are_far_above_the_floor_of_many_clips(features):
    reference, (others, labels) = _real(range(1024))[0], _real(range(1024, 2048))
    names = [*CORRUPTIONS, *(f'no {shape}' for shape in bouncing.SHAPES)]
    floor, distances = _faults(features, reference, others, labels, names)
    assert min(distances) > 3 * floor > 0, dict(zip(names, distances, strict=True))
