"""The kernels of joint attention in the TPU's own compiler, at the sizes of VideoMAR's paper: they compile and fit."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from launch.fit import topology_devices
from magi_jax.layers.cached_frame_attention import cached_frame_attention
from magi_jax.layers.frame_attention import frame_attention
from magi_jax.layers.kv_cache import KVCache
from magi_jax.masking.frames import cached_causal, causal, complete_teacher_forcing
from magi_jax.parallel.program import Costs

HEADS, WIDTH = 24, 64
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
pytestmark = [pytest.mark.slow, needs_libtpu]


def _compile(function, topology, *shapes):
    sharding = SingleDeviceSharding(topology_devices(topology)[0])
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=('tpu',)).compile()


def _split(x):
    return x.reshape(*x.shape[:-1], HEADS, WIDTH)


@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5p:2x2x1'])
@pytest.mark.parametrize('tokens', [256, 1440])
@pytest.mark.parametrize('visible', [causal(4), complete_teacher_forcing(5)], ids=['single', 'ctf'])
def test_forward_and_backward(visible, tokens, topology):
    """No scores and no copies for the kernels in memory: output, logarithms, and little else. FLOPs are counted."""
    shape = (1, len(visible), tokens, HEADS * WIDTH)

    def passes(q, k, v, gradient):
        def attend(*qkv):
            return frame_attention(*map(_split, qkv), visible, 'mosaic').reshape(shape)

        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(gradient)

    compiled = _compile(passes, topology, *[(shape, jnp.bfloat16)] * 4)
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * np.prod(shape)
    pairs = visible.sum() * tokens**2
    assert Costs(compiled.as_text()).total['flops'] == pytest.approx(2 * (2 + 5) * pairs * HEADS * WIDTH, rel=0.01)


@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5p:2x2x1'])
@pytest.mark.parametrize(('tokens', 'heads'), [(256, 24), (1440, 24), (1440, 3)])
def test_cached_frames(tokens, heads, topology):
    """The cache is read where it is. Three heads of 64 channels fill no whole registers: a device of eight holds them.

    The compiler lays out the arguments of such a program with tokens on lanes, so it copies them once.
    """
    attend = functools.partial(_attend_to_cache, heads=heads)
    new, cached = ((2, 1, tokens, heads * WIDTH), jnp.bfloat16), ((4, 2, 8, tokens, heads * WIDTH), jnp.bfloat16)
    number = (), jnp.int32
    compiled = _compile(attend, topology, new, new, new, cached, cached, number, number)
    assert compiled.memory_analysis().temp_size_in_bytes < (2**20 if heads == HEADS else 2**27)


def _attend_to_cache(q, k, v, old_k, old_v, length, block, heads):
    cache = KVCache(old_k, old_v, length)
    mask = cached_causal(1, cache.capacity, length)
    return cached_frame_attention(q, k, v, cache, block, mask, heads, 'mosaic')
