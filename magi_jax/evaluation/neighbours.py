"""What a distance of distributions does not see: modes that are missing, and clips that were learnt by heart.

N, M features of a set, D their width.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 5


def coverage(real: np.ndarray, generated: np.ndarray) -> float:
    """Part of the real features [N,D] that have a generated one [M,D] nearer than their fifth real neighbour.

    Naeem et al. (2020), with M = N. Of two samples of one distribution: about 0.97.
    """
    neighbours = min(NEIGHBOURS, len(real) - 1)
    # The first neighbour of a feature among all is itself.
    radius = NearestNeighbors(n_neighbors=neighbours + 1).fit(real).kneighbors(real)[0][:, -1]
    return float((nearest(real, generated)[0] <= radius).mean())


def nearest(features: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature [N,D], the distance to the nearest of `among` [M,D], float [N], and which it is, int [N]."""
    distances, indices = NearestNeighbors(n_neighbors=1).fit(among).kneighbors(features)
    return distances[:, 0], indices[:, 0]
