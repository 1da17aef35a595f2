"""Nearest-neighbour measures for what a Fréchet distance does not detect: missing modes and memorised clips.

Dimension key: N, M features of a set, D their width.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 5


def coverage(real: np.ndarray, generated: np.ndarray) -> float:
    """Return the fraction of real features [N,D] with a generated one [M,D] closer than their fifth real neighbour.

    This is the coverage of Naeem et al. (2020), with M = N. For two samples of one distribution it is about 0.97.
    """
    neighbours = min(NEIGHBOURS, len(real) - 1)
    # The first neighbour of a feature is itself.
    radius = NearestNeighbors(n_neighbors=neighbours + 1).fit(real).kneighbors(real)[0][:, -1]
    return float((nearest(real, generated)[0] <= radius).mean())


def nearest(features: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each feature [N,D] the distance to the nearest of `among` [M,D], float [N], and its index, int [N]."""
    distances, indices = NearestNeighbors(n_neighbors=1).fit(among).kneighbors(features)
    return distances[:, 0], indices[:, 0]
