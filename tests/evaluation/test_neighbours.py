"""Coverage and nearest clips of clusters whose answers are plain."""

import numpy as np
import pytest

from magi_jax.evaluation.neighbours import coverage, nearest


@pytest.fixture
def clusters():
    """Two modes of 100 features each, far apart."""
    return np.random.default_rng(0).standard_normal((200, 8)) + np.repeat([[0.0], [100.0]], 100, axis=0)


def test_coverage_sees_what_is_missing(clusters):
    again = np.random.default_rng(1).standard_normal((200, 8)) + np.repeat([[0.0], [100.0]], 100, axis=0)
    assert coverage(clusters, again) > 0.9
    assert coverage(clusters, again[:100]) == pytest.approx(coverage(clusters, again) / 2, abs=0.05)
    assert coverage(clusters, np.repeat(again[::20], 20, axis=0)) < 0.7  # ten clips over and over
    assert coverage(clusters, again + 50) == 0


def test_copies_are_near(clusters):
    distances, indices = nearest(clusters[[7, 150]], clusters)
    assert distances.tolist() == [0, 0] and indices.tolist() == [7, 150]
