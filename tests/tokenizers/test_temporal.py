"""What the interface promises of tokenizers that shrink time, and of those that take their input in parts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.tokenizers import api
from magi_jax.tokenizers.published import PUBLISHED


def _blank(kind):
    config = PUBLISHED[kind].config
    return api.Tokenizer({}, jnp.zeros(config.channels), jnp.ones(config.channels), config)


@pytest.mark.parametrize(
    ('kind', 'frames', 'latent_frames'),
    [
        ('cosmos_cv8x8x8', 17, 3),
        ('cosmos_cv4x8x8', 17, 5),
        ('cosmos_cv8x8x8', 1, 1),
        ('cosmos_cv8x16x16', 25, 4),
        ('omni', 17, 5),
        ('sd_vae', 16, 16),
        ('kl16', 7, 7),
    ],
)
def test_latent_frames(kind, frames, latent_frames):
    tokenizer = _blank(kind)
    factor = tokenizer.config.downsample
    shape = tokenizer.latent_shape(frames, 128, 128)
    assert shape == (latent_frames, 128 // factor, 128 // factor, tokenizer.config.channels)
    assert tokenizer.video_frames(latent_frames) == frames
    assert tokenizer.frame_wise == (kind in ('sd_vae', 'kl16'))


@pytest.mark.parametrize(('frames', 'way_out'), [(16, 'use 9 or 17'), (18, 'use 17 or 25'), (5, 'use 1 or 9')])
def test_clips_of_other_lengths_are_refused(frames, way_out):
    tokenizer = _blank('cosmos_cv8x8x8')
    with pytest.raises(ConfigError, match=rf'cosmos_cv8x8x8 takes 1 \+ 8k frames, not {frames}: {way_out}'):
        tokenizer.latent_shape(frames, 64, 64)
    with pytest.raises(ConfigError, match='frames'):
        tokenizer.encode(jnp.zeros((1, frames, 64, 64, 3)))
    with pytest.raises(ConfigError, match='multiples'):
        tokenizer.latent_shape(17, 64, 60)


@pytest.mark.parametrize(('height', 'width'), [(64, 128), (96, 96)])
def test_omni_wants_squares_of_whole_windows(height, width):
    with pytest.raises(ConfigError, match=f'sides in multiples of 64, not {height}x{width}'):
        _blank('omni').latent_shape(17, height, width)


class _Doubler(nn.Module):
    """Stands for a tokenizer whose memory forbids more than some frames at a time."""

    most: int | None

    def check(self, x):
        """None: everything at once, as our own small autoencoder takes it."""
        assert len(x) == 40 if self.most is None else len(x) <= self.most

    def encode(self, x):
        self.check(x)
        return 2 * x[:, ::8, ::8], jnp.full_like(x[:, ::8, ::8], -jnp.inf)

    def decode(self, x):
        self.check(x)
        return jnp.repeat(jnp.repeat(x / 2, 8, axis=1), 8, axis=2)


@pytest.mark.parametrize(('frames', 'most'), [(4, 8), (8, 8), (6, 2), (10, 4), (40, None)])
def test_parts_give_the_same_as_the_whole(monkeypatch, frames, most):
    kind = api.TokenizerKind(lambda config, dtype: _Doubler(most), pixels=most and most * 16 * 16)
    monkeypatch.setitem(api.KINDS, 'sd_vae', kind)
    tokenizer = _blank('sd_vae').replace(latent_mean=jnp.zeros(3), latent_std=jnp.ones(3))
    video = np.random.default_rng(0).uniform(-0.4, 0.4, (2, frames // 2, 16, 16, 3)).astype(np.float32)
    latents = tokenizer.encode(video)
    np.testing.assert_array_equal(latents, 2 * video[:, :, ::8, ::8])
    np.testing.assert_array_equal(tokenizer.decode(latents)[:, :, ::8, ::8], video[:, :, ::8, ::8])


def test_precision_is_part_of_what_a_tokenizer_is():
    tokenizer = _blank('sd_vae')
    near = tokenizer.replace(config=dataclasses.replace(tokenizer.config, dtype='bfloat16'))
    assert api.fingerprint(near) != api.fingerprint(tokenizer)
    assert api.make_module(near.config).dtype == jnp.bfloat16
    assert api.make_module(near.config, jnp.float32).dtype == jax.dtypes.canonicalize_dtype(jnp.float32)
