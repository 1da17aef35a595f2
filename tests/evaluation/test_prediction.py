"""The protocols: near-perfect predictions pass, each way to fail fails the rule that is about it."""

import json

import numpy as np
import pytest

from magi_jax.evaluation import pixels, prediction
from tests.evaluation.clips import real_clips, spoil

CONTEXT, CLIPS = 5, 6


@pytest.fixture(scope='module')
def real():
    return real_clips(CLIPS, 16)


@pytest.fixture(scope='module')
def long():
    return real_clips(CLIPS, 40)


def rules(result):
    """Passed? by the first word of the rule."""
    return {rule.split(':')[0]: passed for rule, passed in result.passes.items()}


def test_good_prediction(real):
    video, labels = real
    result = prediction.score_prediction(spoil(video[:, CONTEXT:], 8), video, labels)
    assert all(result.passes.values()) and len(result.passes) == 2
    assert (result.clips, result.context, result.generated) == (CLIPS, CONTEXT, 11)
    assert {len(curve) for curve in result.curves.values()} == {11}
    assert 30 < result.numbers['psnr_model'] < 34
    assert result.numbers['centre_error_model'] < 0.4 and result.numbers['centre_error_real'] < 0.4
    assert result.numbers['found_model'] > 0.99
    moved = result.curves['centre_error_repeat_last_context']
    assert 1.0 < moved[0] < 2.5 and moved[-1] > 8
    best = max(result.numbers['psnr_repeat_last_context'], result.numbers['psnr_plain_background'])
    np.testing.assert_allclose(result.numbers['margin_mean'], result.numbers['psnr_model'] - best)


def test_a_still_prediction_equals_its_baseline_and_fails(real):
    video, labels = real
    result = prediction.score_prediction(pixels.repeat_last_context(video[:, :CONTEXT], 11), video, labels)
    assert result.curves['psnr_model'] == result.curves['psnr_repeat_last_context']
    assert not any(result.passes.values())
    model, baseline = (result.curves[f'centre_error_{name}'] for name in ('model', 'repeat_last_context'))
    np.testing.assert_allclose(model, baseline, atol=0.7)


def test_an_empty_prediction_has_no_centres_and_stays_json(real):
    video, labels = real
    result = prediction.score_prediction(np.zeros_like(video[:, CONTEXT:]), video, labels)
    assert result.curves['centre_error_model'] == [None] * 11 and result.numbers['found_model'] == 0
    json.dumps(result.to_json(), allow_nan=False)


def test_prediction_without_labels(real):
    video, _ = real
    result = prediction.score_prediction(video[:, CONTEXT:], video)
    assert set(result.curves) == {'psnr_model', 'psnr_repeat_last_context', 'psnr_plain_background'}
    assert result.numbers['psnr_model'] == pixels.MAX_PSNR


def test_prediction_refuses_clips_that_do_not_match(real):
    video, _ = real
    for generated in (video, video[1:, CONTEXT:]):
        with pytest.raises(ValueError, match='continuation'):
            prediction.score_prediction(generated, video)


def test_good_rollout(long):
    video, labels = long
    result = prediction.score_rollout(spoil(video, 8, blur=True), video, labels, CONTEXT)
    assert all(result.passes.values()) and len(result.passes) == 5
    assert {len(curve) for curve in result.curves.values()} == {35} and result.generated == 35
    for name in ('colour', 'shape', 'moving'):
        assert result.numbers[f'{name}_model'] > 0.97
    np.testing.assert_allclose(result.numbers['speed_model'], result.numbers['speed_real'], rtol=0.05)
    np.testing.assert_allclose(result.numbers['bounces_model'], result.numbers['bounces_real'], rtol=0.1)
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    'name, failed',
    [('still', {'moving', 'bouncing'}), ('empty', {'colour', 'shape', 'count', 'moving', 'bouncing'})],
)
def test_bad_rollouts(long, name, failed):
    video, labels = long
    generated = video.copy()
    generated[:, CONTEXT:] = video[:, CONTEXT - 1 : CONTEXT] if name == 'still' else 0
    result = prediction.score_rollout(generated, video, labels, CONTEXT)
    assert {rule for rule, passed in rules(result).items() if not passed} == failed
    json.dumps(result.to_json(), allow_nan=False)


def test_a_wrong_shape_costs_the_shape_and_not_the_colour(long):
    video, labels = long
    swapped = np.array([0, 2, 1, -1])  # the truth says: triangles for squares and squares for triangles
    changed = dict(labels, labels=swapped[labels['labels']])
    result = prediction.score_rollout(video, video, changed, CONTEXT)
    assert result.numbers['shape_real'] < 0.9 < result.numbers['colour_real']


@pytest.mark.parametrize('track, turns', [((), 0), ((3, 3, 3), 0), ((0, 5, 0, 5), 2), ((0, 1.5, 0, 1.5, 0), 0)])
def test_reversals(track, turns):
    assert prediction._reversals(np.array(track, float)) == turns


def test_bounces_of_real_objects():
    """At 2 pixels a frame and 50 between walls some 5 turns in 100 frames, two axes; and as many off other objects."""
    video, labels = real_clips(3, 100)
    assert 2 < prediction.score_rollout(video, video, labels, CONTEXT).numbers['bounces_real'] < 15
