"""Joint attention against attention with a dense mask over all tokens, in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from magi_jax.layers import dense_attention, frame_attention_tpu, kernel_sizes
from magi_jax.layers import frame_attention as module
from magi_jax.layers.frame_attention import frame_attention
from magi_jax.masking.frames import causal, complete_teacher_forcing

CLIPS, HEADS, WIDTH = 2, 3, 5
ARBITRARY = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
VISIBLE = {
    'causal': causal(3),
    'ctf': complete_teacher_forcing(2),
    'arbitrary': ARBITRARY,
    'one': np.ones((1, 1), bool),
}


def _textbook(q, k, v, visible):
    scores = jnp.einsum('brnhd,bsmhd->bhrnsm', q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(visible[None, None, :, None, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=(-2, -1))
    return jnp.einsum('bhrnsm,bsmhd->brnhd', weights, v)


def _inputs(visible, queries, keys, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    rows, frames = visible.shape
    q, gradient = np.float32(rng.normal(size=(2, CLIPS, rows, queries, HEADS, width)))
    k, v = np.float32(rng.normal(size=(2, CLIPS, frames, keys, HEADS, width)))
    return q, k, v, gradient


def _value_and_gradients(attend, *inputs):
    @jax.jit
    def run(q, k, v, gradient):
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(gradient)

    return run(*inputs)


def _compare(visible, implementation, queries, keys, width=WIDTH):
    inputs = _inputs(visible, queries, keys, width)
    ours = _value_and_gradients(lambda *qkv: frame_attention(*qkv, visible, implementation), *inputs)
    theirs = _value_and_gradients(lambda *qkv: _textbook(*qkv, visible), *inputs)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our, their, atol=1e-5)


@pytest.mark.parametrize(('name', 'chunked'), [('causal', False), ('ctf', True), ('arbitrary', True)])
def test_value_and_gradients_are_the_textbook_ones(name, chunked, monkeypatch):
    if chunked:  # chunks of several queries, the last one padded
        monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4 * CLIPS * HEADS * 13 * 5)
    _compare(VISIBLE[name], 'xla', 11, 13)


def test_kernels_compute_the_same():
    """Three heads of 64 channels: two share a register, one is alone in it."""
    _compare(VISIBLE['ctf'], 'interpret', 16, 16, width=64)


@pytest.mark.parametrize('width', [40, pytest.param(128, marks=pytest.mark.slow)])
def test_kernels_take_several_blocks_and_pad_what_is_not_whole(width, monkeypatch):
    monkeypatch.setattr(kernel_sizes, 'LARGEST_BLOCK', 32)
    _compare(ARBITRARY[:2], 'interpret', 37, 41, width)


def test_kernels_divide_the_query_frames_of_long_clips(monkeypatch):
    monkeypatch.setattr(frame_attention_tpu, 'QUERY_GRADIENT_BYTES', 2 * 16 * 128 * 12)
    _compare(ARBITRARY, 'interpret', 16, 16, width=128)


@pytest.mark.parametrize('implementation', ['xla', 'interpret'])
def test_a_frame_that_is_not_visible_may_hold_anything(implementation, monkeypatch):
    """It is not read. Short sequences are the exception: one masked product reads them all."""
    monkeypatch.setattr(module, 'SMALL', 0)
    visible = ARBITRARY[:2]
    q, k, v, gradient = _inputs(visible, 7, 7, width=40)

    def run():
        return _value_and_gradients(lambda *qkv: frame_attention(*qkv, visible, implementation), q, k, v, gradient)

    whole = run()
    k[:, 1], v[:, 1] = np.nan, np.nan
    for one, other in zip(whole, run()):
        np.testing.assert_array_equal(one, other)


def test_a_query_frame_that_sees_nothing_is_refused():
    visible = np.array([[1, 0], [0, 0]], bool)
    with pytest.raises(ValueError, match=r'query frame 1 sees no key frame'):
        frame_attention(*_inputs(visible, 2, 2)[:3], visible, 'xla')


def test_softmax_and_sums_over_chunks_stay_in_float32(monkeypatch):
    """The gradient of one value is a sum over 512 chunks: in bfloat16 it would stop growing at 256 equal terms."""
    monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4)
    q = jnp.zeros((1, 1, 512, 1, 8), jnp.bfloat16)
    k = v = jnp.ones((1, 1, 1, 1, 8), jnp.bfloat16)
    visible = np.ones((1, 1), bool)
    out, backward = jax.vjp(lambda v: frame_attention(q, k, v, visible, 'xla'), v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(backward(jnp.ones_like(q))[0], 512)


def _loss_over_devices(visible, implementation):
    """Return the loss of one device, and its sum over four devices that hold other clips and heads."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(CLIPS, 2), ('data', 'tensor'))

    def loss(q, k, v, gradient):
        return jnp.sum(frame_attention(q, k, v, visible, implementation) * gradient)

    def summed(*parts):
        return jax.lax.psum(loss(*parts), ('data', 'tensor'))

    return loss, jax.shard_map(summed, mesh=mesh, in_specs=P('data', None, None, 'tensor'), out_specs=P())


def test_gradients_inside_shard_map(monkeypatch):
    """JAX checks there how each value varies over the mesh; a value without its axes gets the sum of all gradients."""
    monkeypatch.setattr(dense_attention, 'SCORE_BYTES', 4 * HEADS * 11 * 5)
    inputs = [np.repeat(x, 2, axis=3) for x in _inputs(VISIBLE['causal'], 11, 11)]
    functions = _loss_over_devices(VISIBLE['causal'], 'xla')
    for ours, theirs in zip(*(jax.jit(jax.grad(function, (0, 1, 2)))(*inputs) for function in functions)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_kernels_lower_for_a_tpu_inside_shard_map():
    """With the check of varying axes; the interpreter of kernels does not pass it, so nothing runs here."""
    shape = jax.ShapeDtypeStruct((CLIPS, 3, 32, 4, 64), jnp.bfloat16)
    _, summed = _loss_over_devices(VISIBLE['causal'], 'mosaic')
    program = jax.jit(jax.grad(summed, (0, 1, 2))).trace(shape, shape, shape, shape).lower(lowering_platforms=('tpu',))
    assert [program.as_text().count(f'"{name}"') > 0 for name in ('forward_kernel', 'backward_kernel')] == [True, True]


def test_the_gpu_kernel_is_asked_for_each_query_frame(monkeypatch):
    """Its shapes, and float32 sums of the gradients of a key frame; the kernel itself needs a GPU."""
    plain, calls = jax.nn.dot_product_attention, []

    def attend(q, k, v, implementation):
        calls.append((implementation, q.shape[1], k.shape[1], k.dtype))
        return plain(q, k, v)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', attend)
    _compare(ARBITRARY, 'cudnn', 11, 13)
    assert calls == [('cudnn', 11, 13 * frames, jnp.float32) for frames in (3, 1, 5)]


def test_scores_of_a_clip_are_never_in_memory():
    """Forward and backward: a chunk of scores and a few arrays of its size, whatever the number of frames."""
    visible, tokens, wide = causal(3), 512, 16
    shape = jax.ShapeDtypeStruct((1, len(visible), tokens, 1, wide), jnp.float32)

    def loss(*qkv):
        return jnp.sum(frame_attention(*qkv, visible, 'xla') ** 2)

    def temporaries(limit):
        dense_attention.SCORE_BYTES, kept = limit, dense_attention.SCORE_BYTES
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        dense_attention.SCORE_BYTES = kept
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(2**16) < 4 * tokens**2 < temporaries(2**30)
