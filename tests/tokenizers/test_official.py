"""Published tokenizers against the official classes: numbers at small widths, names and shapes at full width."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer, make_module
from magi_jax.tokenizers.convert import key_map
from magi_jax.tokenizers.convert.published_file import LAYOUTS
from magi_jax.tokenizers.published import PUBLISHED
from tests.tokenizers import official

FAST = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
LISTINGS = [name.removesuffix('/keys') for name in official.stored() if name.endswith('/keys') and 'small' not in name]


def _converted(kind):
    config = official.SMALL[kind][0]
    blank = jax.eval_shape(lambda: create_tokenizer(config, jax.random.key(0), 64, 64))
    params = key_map.convert(official.weights(kind), blank.params, LAYOUTS[kind], kind)[0]
    return jax.tree.map(jnp.asarray, params)


@functools.cache
def _program(kind, method, dtype='float32'):
    module = make_module(dataclasses.replace(official.SMALL[kind][0], dtype=dtype))
    return jax.jit(lambda params, x: module.apply({'params': params}, x, method=method), compiler_options=FAST)


def _run(kind, method, x, dtype='float32'):
    """Frames for the frame-wise ones, as their module wants them."""
    params, frame_wise = _params(kind), kind in ('sd_vae', 'kl16')
    with jax.default_matmul_precision('highest'):
        made = _program(kind, method, dtype)(params, x[0] if frame_wise else x)
    return jax.tree.map(lambda y: np.asarray(y)[None] if frame_wise else np.asarray(y), made)


_params = functools.cache(_converted)


@pytest.mark.parametrize('kind', PUBLISHED)
def test_numbers_of_the_official_class(kind):
    prefix, step = f'small/{kind}/', official.THINNED.get(kind, 1)
    stored = {k.removeprefix(prefix): v for k, v in official.stored().items() if k.startswith(prefix)}
    mean, log_variance = _run(kind, 'encode', official.clip(kind))
    np.testing.assert_allclose(mean, stored['mean'], atol=1e-5, rtol=0)
    if 'log_variance' in stored:
        np.testing.assert_allclose(log_variance, stored['log_variance'], atol=1e-5, rtol=0)
    else:
        assert np.all(np.exp(log_variance) == 0)
    video = _run(kind, 'decode', stored['mean'])
    np.testing.assert_allclose(video[:, :, ::step, ::step], stored['video'], atol=1e-4, rtol=0)
    assert stored['video'].std() > 0.05  # what is compared is not all but constant


@pytest.mark.parametrize('listing', LISTINGS)
def test_keys_of_the_official_class_at_full_width(listing):
    kind, keys = listing.split('/')[1], official.keys(listing)
    blank = jax.eval_shape(lambda: create_tokenizer(PUBLISHED[kind].config, jax.random.key(0), 64, 64))
    assert sum(leaf.size for leaf in jax.tree.leaves(blank.params)) == PUBLISHED[kind].parameters
    slots = key_map.slots(blank.params)
    matches = [layout for layout in LAYOUTS[kind] if {layout.rename(name) for name in slots} <= set(keys)]
    assert len(matches) == 1
    by_key = {matches[0].rename(name): slot for name, slot in slots.items()}
    assert all(slot.fits(keys[key]) for key, slot in by_key.items())
    extra = [key for key in keys if key not in by_key]
    assert all(any(re.match(pattern, key) for pattern, _ in matches[0].dropped) for key in extra)


def test_bfloat16_is_near_and_comes_out_as_float32():
    clip = official.clip('cosmos_cv4x8x8')
    exact, near = (_run('cosmos_cv4x8x8', 'encode', clip, dtype)[0] for dtype in ('float32', 'bfloat16'))
    assert near.dtype == jnp.float32
    error = np.abs(near - exact).max()
    assert 1e-5 < error < 0.05 * np.abs(exact).max()


def test_cosmos_latents_do_not_see_the_future():
    clip = official.clip('cosmos_cv4x8x8')
    other = clip.copy()
    other[:, 5:] *= -1
    latents, changed = (_run('cosmos_cv4x8x8', 'encode', x)[0] for x in (clip, other))
    np.testing.assert_array_equal(latents[:, :2], changed[:, :2])
    assert np.abs(latents[:, 2] - changed[:, 2]).max() > 1e-3


def test_omni_latents_do_see_the_future():
    """What its weights were trained with; contexts must be encoded alone."""
    clip = official.clip('omni')
    other = clip.copy()
    other[:, 1:] *= -1
    latents, changed = (_run('omni', 'encode', x)[0] for x in (clip, other))
    assert np.abs(latents[:, 0] - changed[:, 0]).max() > 0.1


@pytest.mark.parametrize('kind', ['cosmos_cv4x8x8', 'omni'])
def test_five_frames_alone_are_the_first_two_latents_only_where_time_is_causal(kind):
    """Kinetics-600's context of five frames, cut out of 17: the same latents of cosmos, others of omni (A17)."""
    config, shape = official.SMALL[kind]
    tokenizer = Tokenizer(_params(kind), np.zeros(config.channels), np.ones(config.channels), config)
    video = np.random.default_rng(8).uniform(-1, 1, (1, 17, *shape[2:])).astype(np.float32)
    encode = jax.jit(lambda tokenizer, video, context: tokenizer.encode(video, context=context), static_argnums=2)
    encode = functools.partial(encode, tokenizer)
    whole, alone, mixed = encode(video, 0), encode(video[:, :5], 0), encode(video, 5)
    assert whole.shape[1] == mixed.shape[1] == 5 and alone.shape[1] == 2
    leak = np.abs(whole[:, :2] - alone).max()
    assert leak < 1e-5 if kind == 'cosmos_cv4x8x8' else leak > 0.1
    np.testing.assert_allclose(mixed[:, :2], alone, atol=1e-5)
    np.testing.assert_allclose(mixed[:, 2:], whole[:, 2:], atol=1e-5)
    with pytest.raises(ConfigError, match='takes 1 . 4k frames, not 4'):
        encode(video, 4)
