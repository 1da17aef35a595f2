import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError, TokenizerConfig
from magi_jax.tokenizers.api import create_tokenizer, fingerprint
from magi_jax.tokenizers.pixels import to_float, to_uint8

SMALL = TokenizerConfig(channels=5, width=14, encoder_blocks=1, decoder_blocks=0)
IDENTITY = TokenizerConfig(kind='identity', channels=48, downsample=4)


@functools.cache
def _tokenizer(config=SMALL):
    return create_tokenizer(config, jax.random.key(0), 32, 32)


def _video(clips, frames, height, width):
    return np.random.default_rng(0).integers(0, 256, (clips, frames, height, width, 3), np.uint8)


@pytest.mark.parametrize('config', [SMALL, dataclasses.replace(SMALL, downsample=16), IDENTITY])
@pytest.mark.parametrize(('height', 'width'), [(32, 32), (16, 48)])
def test_encode_and_decode_have_the_promised_shapes(config, height, width):
    tokenizer = _tokenizer(config)
    video = to_float(_video(2, 3, height, width))
    latents = jax.jit(lambda t, v: t.encode(v))(tokenizer, video)
    assert latents.shape == (2, *tokenizer.latent_shape(3, height, width))
    assert latents.dtype == jnp.float32
    decoded = tokenizer.decode(4 * latents)
    assert decoded.shape == video.shape
    assert decoded.dtype == jnp.float32
    assert np.abs(decoded).max() <= 1


def test_frames_off_the_grid_are_refused():
    tokenizer = _tokenizer()
    with pytest.raises(ConfigError, match='30x32 must be multiples of tokenizer.downsample = 8'):
        tokenizer.latent_shape(3, 30, 32)
    with pytest.raises(ConfigError, match='multiples'):
        tokenizer.encode(jnp.zeros((1, 1, 32, 36, 3)))


def test_statistics_normalise_latents_and_cancel_in_decode():
    plain = _tokenizer()
    scaled = plain.replace(latent_mean=jnp.arange(5.0), latent_std=1 + jnp.arange(5.0))
    video = to_float(_video(2, 1, 32, 32))
    expected = (np.asarray(plain.encode(video)) - np.arange(5)) / (1 + np.arange(5))
    np.testing.assert_allclose(scaled.encode(video), expected, atol=1e-5)
    twin = scaled.decode(scaled.encode(video))
    np.testing.assert_allclose(twin, plain.decode(plain.encode(video)), atol=1e-5)


def test_samples_scatter_around_the_posterior_mean_as_its_variance_says():
    tokenizer = _tokenizer()
    video = to_float(np.tile(_video(1, 1, 8, 8), (4000, 1, 1, 1, 1)))
    mean, log_variance = (x[0, 0, 0, 0] for x in tokenizer.moments(video[:1]))
    noise = jax.random.normal(jax.random.key(3), (4000, *tokenizer.latent_shape(1, 8, 8)))
    samples = np.asarray(tokenizer.encode(video, noise))[:, 0, 0, 0]
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(samples.std(0), np.exp(0.5 * log_variance), rtol=0.1)


def test_identity_is_exact():
    tokenizer = _tokenizer(IDENTITY)
    video = _video(2, 3, 16, 24)
    latents = tokenizer.encode(to_float(video), np.float32(99.0))
    np.testing.assert_array_equal(tokenizer.decode(latents), to_float(video))
    np.testing.assert_array_equal(to_uint8(tokenizer.decode(latents)), video)
    np.testing.assert_array_equal(latents[0, 0, 1, 2, :3], to_float(video)[0, 0, 4, 8])


@pytest.mark.parametrize('wrong', [{'downsample': 6}, {'width': 7}, {'kind': 'identity'}], ids=str)
def test_impossible_configs_are_refused_by_field(wrong):
    with pytest.raises(ConfigError, match='tokenizer.'):
        create_tokenizer(TokenizerConfig(**wrong), jax.random.key(0), 48, 48)


def test_fingerprint_follows_weights_statistics_and_config_but_not_the_path():
    tokenizer = _tokenizer()
    same = create_tokenizer(dataclasses.replace(SMALL, path='elsewhere'), jax.random.key(0), 64, 64)
    others = [
        tokenizer.replace(params=jax.tree.map(lambda x: x + 1, tokenizer.params)),
        tokenizer.replace(latent_std=2 * tokenizer.latent_std),
        tokenizer.replace(config=dataclasses.replace(SMALL, width=16)),
    ]
    assert fingerprint(same) == fingerprint(tokenizer)
    assert len({fingerprint(tokenizer), *map(fingerprint, others)}) == 4


def test_every_uint8_value_survives_the_float_range():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(values)), values)
    assert (to_float(values)[0], to_float(values)[-1]) == (-1, 1)
