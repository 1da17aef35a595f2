import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.masking.frames import cached_causal, causal, complete_teacher_forcing, training_rows, without_history


@pytest.mark.parametrize('frames', [1, 2, 5, 16])
def test_complete_teacher_forcing_pair_by_pair(frames):
    mask = complete_teacher_forcing(frames)
    assert mask.shape == (2 * frames, 2 * frames) and mask.dtype == bool
    for q in range(2 * frames):
        for k in range(2 * frames):
            if q < frames:
                allowed = k <= q
            else:
                allowed = k < q - frames if k < frames else k == q
            assert mask[q, k] == allowed, (q, k)
    assert mask.sum() == frames**2 + frames


@pytest.mark.parametrize('parts', [1, 2])
def test_without_history_masked_frames_are_alone_and_observed_ones_as_before(parts):
    frames = 3 if parts == 1 else 4  # padded
    rows = training_rows(3, parts, observed=True)
    visible = complete_teacher_forcing(frames)[rows[:, None], rows[None]]
    alone = without_history(visible, rows)
    np.testing.assert_array_equal(alone[rows < frames], visible[rows < frames])
    np.testing.assert_array_equal(alone[rows >= frames], np.eye(len(rows), dtype=bool)[rows >= frames])
    np.testing.assert_array_equal(without_history(causal(frames), training_rows(3, parts, False)), np.eye(frames))


def test_causal():
    np.testing.assert_array_equal(causal(3), [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize('length', [0, 2, 3])
def test_cached_rows_see_what_is_filled_and_their_own_past(length):
    mask = cached_causal(2, 3, jnp.asarray(length))
    filled = [slot < length for slot in range(3)]
    np.testing.assert_array_equal(mask, [[*filled, True, False], [*filled, True, True]])
