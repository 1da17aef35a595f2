"""How far two results may be apart, for the live comparison and for the stored one alike."""

import jax
import numpy as np

EXACT, HALF, SAMPLED, TRAINED = 1e-5, 1e-2, 1e-4, 1e-4


def relative_error(ours, theirs) -> float:
    """|ours - theirs| / |theirs|, Euclidean norms over the whole array."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def assert_leaves_agree(ours, theirs, tolerance: float) -> None:
    """Every leaf within the relative `tolerance`; the message names the worst."""
    errors = jax.tree.leaves_with_path(jax.tree.map(relative_error, ours, theirs))
    path, error = max(errors, key=lambda item: item[1])
    assert error <= tolerance, f'{jax.tree_util.keystr(path, simple=True, separator="/")}: {error:.1e}'


def assert_runs_agree(ours, theirs, start) -> None:
    """(parameters or trees like them ..., metrics of each step) of two runs from `start`, which must have moved."""
    (*trees, history), (*expected_trees, expected_history) = ours, theirs
    for metrics, expected in zip(history, expected_history, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=TRAINED, err_msg=name)
    for tree, expected in zip(trees, expected_trees, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TRAINED), tree, expected)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), trees[0], start))
    assert np.median(moved) > 1e-2  # steps that change nothing would agree too


def joined(tree) -> np.ndarray:
    """All leaves as one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
