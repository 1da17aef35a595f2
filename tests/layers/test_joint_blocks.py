"""A joint block against NumPy in float64, written from the paper; its text keys; the scan over depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import VideomarModelConfig
from magi_jax.layers.joint_blocks import BlockInputs, JointBlock, TextKeysBlock
from magi_jax.layers.rotary import rotary_tables
from magi_jax.layers.trunk import Trunk
from magi_jax.masking.frames import causal, complete_teacher_forcing
from tests.random_params import random_params

CLIPS, FRAMES, ROWS, COLUMNS, STATES = 2, 3, 2, 3, 5
SPLIT, BASE = (8, 4, 4), 100.0
CONFIG = VideomarModelConfig(width=32, blocks=2, heads=2, mlp_width=24, rope_split=SPLIT, rope_base=BASE)
NUMBERS = {'single': np.arange(FRAMES), 'complete': np.tile(np.arange(FRAMES), 2)}
VISIBLE = {'single': causal(FRAMES), 'complete': complete_teacher_forcing(FRAMES)}
TEXT_MASK = np.asarray([[True, True, False, True, False], [True] * STATES])
TOLERANCE = {'rtol': 1e-5, 'atol': 1e-5}


def _arrays(rows):
    rng = np.random.default_rng(4)
    x = np.float32(rng.normal(size=(CLIPS, rows, ROWS * COLUMNS, CONFIG.width)) + 0.5)
    return x, np.float32(rng.normal(size=(CLIPS, STATES, CONFIG.width)))


def _inputs(layout, **text):
    cos, sin = rotary_tables(NUMBERS[layout], ROWS, COLUMNS, SPLIT, BASE)
    return BlockInputs(cos, sin, tuple(map(tuple, VISIBLE[layout].tolist())), **text)


@pytest.fixture(scope='module')
def params():
    """Parameters of all blocks, stacked."""
    x, text = _arrays(FRAMES)
    inputs = _inputs('single', text=text, text_mask=TEXT_MASK)
    return random_params(lambda key: Trunk(JointBlock, CONFIG, jnp.float32).init(key, x, inputs)['params'])


def _block(params, number):
    return jax.tree.map(lambda leaf: leaf[number], params['blocks'])


def _norm(x, params):
    """LayerNorm with epsilon 1e-5."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * params['scale'] + params['bias']


def _heads(x, params=None):
    """Heads [..., H, d], with an RMSNorm of epsilon 1e-6 for queries and keys."""
    x = x.reshape(*x.shape[:-1], CONFIG.heads, -1)
    return x if params is None else x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params['scale']


def _rotated(x, numbers):
    """Heads [B, R, N, H, d] with channels i and i + c/2 of each axis as a complex number, turned by its angle."""
    out, start = np.empty_like(x), 0
    frame, row, column = np.meshgrid(numbers, np.arange(ROWS), np.arange(COLUMNS), indexing='ij')
    for channels, position in zip(SPLIT, (frame, row, column)):
        half = channels // 2
        for i in range(half):
            angle = position.reshape(len(numbers), -1) / BASE ** (2 * i / channels)
            turned = (x[..., start + i] + 1j * x[..., start + half + i]) * np.exp(1j * angle)[None, :, :, None]
            out[..., start + i], out[..., start + half + i] = turned.real, turned.imag
        start += channels
    return out


def _attended(q, k, v, allowed):
    """Softmax attention of heads [B, Q, H, d] to [B, K, H, d] where `allowed` [B or 1, Q or 1, K]."""
    scores = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max()) * allowed[:, None]
    out = np.einsum('bhqk,bkhd->bqhd', weights / weights.sum(-1, keepdims=True), v)
    return out.reshape(*out.shape[:2], -1)


def _flat(x):
    return x.reshape(CLIPS, -1, *x.shape[3:])


def _text_keys(params, text):
    k, v = np.moveaxis(np.einsum('bse,ecd->bscd', text, params['key_value']['kernel']), 2, 0)
    return _heads(k, params['key_norm']), _heads(v)


def _expected(params, x, text, layout):
    """Return the output of a block, and its rotated keys and its values [B, R, N, D]."""
    params, x, text = jax.tree.map(np.float64, (params, x, text))
    own, visible = params['attention'], VISIBLE[layout]
    q, k, v = np.moveaxis(np.einsum('brne,ecd->brncd', _norm(x, params['attention_norm']), own['qkv']['kernel']), 3, 0)
    q, k = (_rotated(_heads(t, own[name]), NUMBERS[layout]) for t, name in ((q, 'query_norm'), (k, 'key_norm')))
    allowed = visible.repeat(ROWS * COLUMNS, 0).repeat(ROWS * COLUMNS, 1)[None]
    out = _attended(*map(_flat, (q, k, _heads(v))), allowed) @ own['out']['kernel']
    keys_values, x = (k.reshape(v.shape), v), x + out.reshape(x.shape)
    if text is not None:
        own = params['text_attention']
        q = _flat(_heads(x @ own['query']['kernel'], own['query_norm']))
        out = _attended(q, *_text_keys(own, text), TEXT_MASK[:, None]) @ own['out']['kernel']
        x = x + out.reshape(x.shape)
    h = _norm(x, params['mlp_norm']) @ params['up']['kernel']
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + h @ params['down']['kernel'], keys_values


@pytest.mark.parametrize(('layout', 'with_text'), [('single', True), ('complete', False)])
def test_block_equals_numpy(params, layout, with_text):
    x, text = _arrays(len(NUMBERS[layout]))
    inputs = _inputs(layout, text=text, text_mask=TEXT_MASK) if with_text else _inputs(layout)
    run = jax.jit(lambda params: JointBlock(CONFIG, jnp.float32).apply({'params': params}, x, 0, inputs))
    expected = _expected(_block(params, 0), x, text if with_text else None, layout)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, **TOLERANCE), run(_block(params, 0)), expected)
    assert np.abs(expected[0] - x).max() > 1


def test_text_keys_block_gives_the_keys_and_values_of_the_block(params):
    _, text = _arrays(FRAMES)
    run = jax.jit(lambda params: Trunk(TextKeysBlock, CONFIG, jnp.float32).apply({'params': params}, text))
    states, (k, v) = run(params)
    np.testing.assert_array_equal(states, text)
    for number in range(CONFIG.blocks):
        own = jax.tree.map(np.float64, _block(params, number)['text_attention'])
        for got, want in zip((k, v), _text_keys(own, np.float64(text))):
            np.testing.assert_allclose(got[number], want.reshape(text.shape), **TOLERANCE)


def test_scanned_trunk_is_a_loop_over_blocks(params):
    """The trunk reads the text as keys of all blocks, the loop as states."""
    x, text = _arrays(FRAMES)
    own = [
        _text_keys(jax.tree.map(np.float64, _block(params, i)['text_attention']), text) for i in range(CONFIG.blocks)
    ]
    text_keys = tuple(np.float32(np.stack(t, axis=1)).reshape(CLIPS, CONFIG.blocks, STATES, -1) for t in zip(*own))
    inputs = _inputs('single', text_mask=TEXT_MASK, text_keys=text_keys)
    run = jax.jit(lambda params: Trunk(JointBlock, CONFIG, jnp.float32).apply({'params': params}, x, inputs))
    out, (keys, values) = run(params)
    for number in range(CONFIG.blocks):
        x, (k, v) = _expected(_block(params, number), x, text, 'single')
        np.testing.assert_allclose(keys[number], k, **TOLERANCE)
        np.testing.assert_allclose(values[number], v, **TOLERANCE)
    np.testing.assert_allclose(out, x, **TOLERANCE)
