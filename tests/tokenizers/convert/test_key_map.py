"""Converters take every layout that the weights are published in, and name what is wrong with a file."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.tokenizers.api import create_tokenizer
from magi_jax.tokenizers.convert import key_map, ldm
from magi_jax.tokenizers.convert.checkpoint_files import Weight
from magi_jax.tokenizers.convert.published_file import LAYOUTS
from tests.tokenizers import official

KEY = 'decoder.up_blocks.2.resnets.0.conv_shortcut.weight'


@functools.cache
def _shapes(kind):
    config = official.SMALL[kind][0]
    return jax.eval_shape(lambda: create_tokenizer(config, jax.random.key(0), 64, 64)).params


def _convert(weights, kind='sd_vae'):
    return key_map.convert(weights, _shapes(kind), LAYOUTS[kind], 'vae.safetensors')


@functools.cache
def _expected(kind='sd_vae'):
    return _convert(official.weights(kind), kind)[0]


def _as_convolution(weight):
    return Weight((*weight.shape, 1, 1), lambda: weight.read()[..., None, None])


def _renamed(kind, layout, prefix=''):
    """The small official weights under the names of another layout, attention as 1x1 convolutions."""
    by_name = {layout.name: layout for layout in LAYOUTS[kind]}
    made = {}
    for name, weight in official.weights(kind).items():
        linear = re.search(r'\.to_\w+(\.0)?\.weight$', name) and kind in ('sd_vae', 'kl16')
        made[by_name[layout].rename(name)] = _as_convolution(weight) if linear else weight
    return made


@pytest.mark.parametrize(
    ('kind', 'layout', 'some_key'),
    [
        ('sd_vae', 'older diffusers', 'decoder.mid_block.attentions.0.proj_attn.weight'),
        ('sd_vae', 'single-file Stable Diffusion', 'first_stage_model.decoder.up.1.block.0.nin_shortcut.weight'),
        ('sd_vae', 'latent diffusion', 'encoder.mid.attn_1.proj_out.weight'),
        ('kl16', 'latent diffusion', 'encoder.down.4.attn.1.q.weight'),
        ('cosmos_cv8x8x8', 'NVIDIA', 'decoder.up.1.upsample.conv3.conv3d.bias'),
        ('cosmos_cv8x16x16', 'NVIDIA', 'encoder.down.1.downsample.conv1.conv3d.weight'),
        ('cosmos_cv4x8x8', 'NVIDIA', 'encoder.mid.attn_1.1.norm.norm.weight'),
    ],
)
def test_every_layout_gives_the_same_parameters(kind, layout, some_key):
    weights = _renamed(kind, layout)
    assert some_key in weights
    params, report = _convert(weights, kind)
    assert (report.layout, report.used, report.dropped) == (layout, len(weights), {})
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(_shapes(kind)))
    jax.tree.map(np.testing.assert_array_equal, params, _expected(kind))


def test_the_rest_of_a_stable_diffusion_checkpoint_is_dropped_with_its_reason():
    others = ['model.diffusion_model.out.2.bias', 'cond_stage_model.logit_scale', 'betas']
    weights = _renamed('sd_vae', 'single-file Stable Diffusion')
    unread = Weight((3,), lambda: pytest.fail('read although dropped'))
    _, report = _convert(weights | dict.fromkeys([*others, 'first_stage_model.loss.logvar'], unread))
    assert set(report.dropped['not of the autoencoder']) == set(others)
    assert sum(map(len, report.dropped.values())) == 4


def _without(weights, key):
    return {name: weight for name, weight in weights.items() if name != key}


def _turned(weight):
    return Weight(weight.shape[::-1], lambda: weight.read().T)


def _broken(weight):
    return Weight(weight.shape, lambda: np.full(weight.shape, np.nan))


@pytest.mark.parametrize(
    ('damage', 'complaint'),
    [
        (lambda w: _without(w, KEY), f'missing: {KEY}$'),
        (lambda w: w | {'encoder.extra.weight': w[KEY]}, 'unexpected: encoder.extra.weight$'),
        (lambda w: _without(w, KEY) | {KEY + 's': w[KEY]}, f'missing: {KEY}; unexpected: {KEY}s$'),
        (lambda w: w | {KEY: _turned(w[KEY])}, rf'of another shape: {KEY} \(1, 1, 128, 64\) instead .*transposed'),
        (lambda w: w | {KEY: Weight((7,), None)}, rf'of another shape: {KEY} \(7,\) instead of \(64, 128\)$'),
        (lambda w: w | {KEY: _broken(w[KEY])}, f'not finite: {KEY}$'),
    ],
    ids=['dropped', 'added', 'renamed', 'transposed', 'misshapen', 'nan'],
)
def test_a_damaged_key_is_named(damage, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        _convert(damage(official.weights('sd_vae')))
    assert '\n' not in str(error.value) and str(error.value).startswith('vae.safetensors does not fit the diffusers')


def test_what_is_missing_is_named_as_the_file_would_name_it():
    weights = _renamed('sd_vae', 'single-file Stable Diffusion')
    key = 'first_stage_model.decoder.up.1.block.0.nin_shortcut.weight'
    with pytest.raises(ConfigError, match=f'single-file .*missing: {key}$'):
        _convert(_without(weights, key))


def test_another_architecture_is_refused():
    with pytest.raises(ConfigError, match='kl16.ckpt does not fit .*and [0-9]+ more'):
        key_map.convert(official.weights('sd_vae'), _shapes('kl16'), ldm.layouts(5), 'kl16.ckpt')


def test_kernels_are_turned_the_right_way():
    linear, image, video = key_map.Slot('a/kernel', (2, 3)), (5, 7, 2, 3), (4, 5, 7, 2, 3)
    values = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(linear.from_file(values), values.T)
    np.testing.assert_array_equal(linear.from_file(values[..., None, None]), values.T)
    for shape in (image, video):
        slot = key_map.Slot('a/kernel', shape)
        values = np.random.default_rng(0).random(slot.file_shape, np.float32)
        made = slot.from_file(values)
        assert made.shape == shape and made[(*[1] * (len(shape) - 2), 0, 2)] == values[(2, 0, *[1] * (len(shape) - 2))]
    assert dataclasses.replace(linear, path='a/bias').from_file(np.ones((2, 3))).shape == (2, 3)


def test_tensorflow_kernels_stay_as_they_are():
    kernel = key_map.Slot('a/kernel', (4, 5, 7, 2, 3), channels_last=True)
    values = np.random.default_rng(0).random(kernel.shape, np.float32)
    assert kernel.fits(kernel.shape) and not kernel.fits(dataclasses.replace(kernel, channels_last=False).file_shape)
    np.testing.assert_array_equal(kernel.from_file(values), values)
    bias = key_map.Slot('a/bias', (3,), channels_last=True)
    assert bias.fits((1, 1, 1, 1, 3)) and bias.fits((3,)) and not bias.fits((3, 1)) and not bias.fits((2, 3))
    np.testing.assert_array_equal(bias.from_file(np.ones((1, 1, 3))), np.ones(3))
