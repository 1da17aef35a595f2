"""Sets of features that this project and tests/fixtures/make_frechet.py draw alike."""

import numpy as np

CASES = {  # name: (features of the first set, of the second, width)
    'full rank': (500, 500, 16),
    'rank deficient': (40, 30, 64),
}


def feature_sets(case):
    """Two sets float64 [N,D], [M,D] of different Gaussians with means far from 0 and axes of very different spread."""
    first, second, width = CASES[case]
    rng = np.random.default_rng(width)
    spread = np.geomspace(3, 0.01, width)
    a = 5 + rng.standard_normal((first, width)) * spread
    return a, 5.2 + rng.standard_normal((second, width)) @ np.linalg.qr(rng.standard_normal((width, width)))[0] * spread
