"""The warning of a loss that spikes."""

from magi_jax.training.spikes import spike_message


def test_a_spike_is_told_with_its_step_size_and_remedy():
    message = spike_message([0.05, 0.04, 0.045, 0.04, 0.041, 0.04, 6.3], 150, 1981.0)
    assert message.startswith('step 150: the loss rose to 6.3') and '1981' in message
    assert 'optim.learning_rate' in message and '\n' not in message


def test_falling_noisy_short_and_negative_losses_are_no_spikes():
    assert not spike_message([1.0, 0.5, 0.2, 0.1, 0.05, 0.1], 6, 1.0)
    assert not spike_message([0.01, 0.02, 0.01, 0.03, 0.01, 0.02, 0.04], 7, 1.0)
    assert not spike_message([0.01, 9.0], 2, 1.0)
    assert not spike_message([-1.0] * 9 + [5.0], 10, 1.0)
