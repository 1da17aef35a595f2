"""Distances equal scipy's and torchmetrics' (tests/fixtures/make_frechet.py), and moments merge as if never parted."""

import functools
import json
import pathlib

import numpy as np
import pytest
import scipy.linalg

from magi_jax.evaluation.frechet import Moments, frechet_distance, kernel_distance
from tests.evaluation.features import CASES, feature_sets

STORED = json.loads((pathlib.Path(__file__).parents[1] / 'fixtures' / 'frechet.json').read_text())


@pytest.mark.parametrize('case', CASES)
def test_frechet_distance_is_the_formula_of_scipy(case):
    a, b = feature_sets(case)
    product = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * product.real)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('case', CASES)
def test_frechet_distance_is_that_of_torchmetrics(case):
    a, b = map(Moments.of, feature_sets(case))
    assert frechet_distance(a, b) == pytest.approx(STORED[case]['frechet'], rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(STORED[case]['frechet'], rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_that_of_torchmetrics():
    a, b = feature_sets('full rank')
    assert kernel_distance(a, b) == pytest.approx(STORED['full rank']['kernel'], rel=1e-9)


def test_kernel_distance_by_definition_and_in_blocks(monkeypatch):
    a, b = feature_sets('rank deficient')
    whole = kernel_distance(a, b)
    monkeypatch.setattr('magi_jax.evaluation.frechet.BLOCK', 7)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)

    def mean(x, y, skip):
        values = [(p @ q / x.shape[1] + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not skip or i != j]
        return np.mean(values)

    assert whole == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False), rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_zero_in_the_mean():
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.standard_normal((2, 50, 8))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) and min(values) < 0


def test_moments_merge_as_if_never_parted():
    features = 1e6 + feature_sets('full rank')[0]  # the textbook sum of squares loses ten digits here
    parts = [Moments.of(part) for part in np.split(features, [1, 8, 300])]
    for order in (parts, parts[::-1]):
        merged = functools.reduce(Moments.merge, order)
        assert merged.count == len(features)
        np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-15)
        np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-6, atol=1e-9)


def test_sets_that_have_no_distance():
    one, many, wide = Moments.of(np.ones((1, 3))), Moments.of(np.eye(3)), Moments.of(np.eye(4))
    for other in (one, wide):
        with pytest.raises(ValueError, match='no Fréchet distance'):
            frechet_distance(many, other)
    for other in (np.ones((1, 3)), np.eye(4)):
        with pytest.raises(ValueError, match='no kernel distance'):
            kernel_distance(np.eye(3), other)
