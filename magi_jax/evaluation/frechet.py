"""Fréchet and kernel distances between two sets of features, in float64.

Moments are computed batch by batch and merged in any order, so no host needs the features of all clips.

Dimension key: B features of a batch, N of a set, D their width.
"""

import dataclasses

import numpy as np
from einops import rearrange

BLOCK = 1024  # rows of a kernel matrix computed together


@dataclasses.dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of a set of features. Sets with equal moments have Fréchet distance 0."""

    count: int
    mean: np.ndarray  # float64 [D]
    scatter: np.ndarray  # float64 [D,D], sum of outer products of deviations from the mean

    @classmethod
    def of(cls, features: np.ndarray) -> 'Moments':
        """Compute the moments of features [B,D], B >= 1."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean[None]
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: 'Moments') -> 'Moments':
        """Return the moments of the union of two sets (Chan, Golub and LeVeque, 1979), without cancellation."""
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance (divided by N - 1), float64 [D,D]."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians with these moments (Dowson and Landau, 1982).

    For two samples of one distribution it is not 0 but about D / N times their variance. So compare values of equal N
    only.

    Raises:
      ValueError: a set has fewer than two features, or the widths differ.
    """
    if min(a.count, b.count) < 2 or a.mean.shape != b.mean.shape:
        raise ValueError(
            f'no Fréchet distance between features {[a.count, *a.mean.shape]} and {[b.count, *b.mean.shape]}'
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T
    # tr sqrt(A B) = tr sqrt(A^1/2 B A^1/2). The root of a symmetric matrix is stable also if ranks are lost.
    between = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(between, 0)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy under (x·y / D + 1)^3 (KID: Binkowski et al., 2018).

    For two samples of one distribution its mean is 0 for any size; single estimates may be negative.

    Args:
      a: [N,D], N >= 2.
      b: [M,D], M >= 2; M may differ from N.

    Raises:
      ValueError: a set has fewer than two features, or the widths differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f'no kernel distance between features {list(a.shape)} and {list(b.shape)}')
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    within = sum((_kernel_sum(x, x) - _kernel_diagonal(x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(within - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    blocks = (a[start : start + BLOCK] for start in range(0, len(a), BLOCK))
    return sum(((block @ rearrange(b, 'n d -> d n') / a.shape[1] + 1) ** 3).sum() for block in blocks)


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    return (np.square(x).mean(axis=1) + 1) ** 3
