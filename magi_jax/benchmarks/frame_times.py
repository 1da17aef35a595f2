"""How long the n-th frame of a video takes: with the KV cache, with its attention alone, and without a cache.

Dimension key: B clips, F frames of a video, N tokens of a frame, S sites, C token width, D width, L blocks.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.benchmarks import problem
from magi_jax.config import Config
from magi_jax.layers.cached_attention import cached_attention
from magi_jax.layers.kv_cache import KVCache
from magi_jax.models.magi import frame_sites
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.sampling.stream import clip_keys
from magi_jax.sampling.video import VideoSampler

AVERAGED = 8  # frames up to the n-th: what a sliding window reads again now and then is shared among them

SLIDING, WHOLE, ATTENTION, UNCACHED = 'sliding window', 'all frames cached', 'its attention alone', 'no cache'


def measure(config: Config, lengths: Sequence[int], repeats: int) -> dict[str, dict[int, float]]:
    """Seconds that the n-th frame takes, for every n of `lengths`; the weights are random, the times are not theirs.

    Args:
      config: of a generator; `data.batch_size` clips are sampled at once.
      lengths: ascending, each at least AVERAGED + 1.
      repeats: of each measurement, of which the median counts.

    Returns:
      Name of the way -> n -> seconds. `no cache` is what it takes to compute the keys and values of the n - 1 frames
      before at each of the K mask steps, and the frame itself.
    """
    tokenizer = problem.latent_bytes(config)
    shape = clip_shape(config, tokenizer)
    params = problem.random_params(make_objective(config, tokenizer).init, config.seed)

    def sampler(long_video: str) -> VideoSampler:
        recipe = dataclasses.replace(config.sampler, long_video=long_video)
        return VideoSampler(dataclasses.replace(config, sampler=recipe), shape)

    interval, keys = np.ones(config.data.batch_size, np.int32), clip_keys(0, np.arange(config.data.batch_size))
    start = functools.partial(_start, params, (len(interval), shape.tokens, shape.token_width), interval, keys)
    times = {name: {} for name in (SLIDING, WHOLE, ATTENTION, UNCACHED)}
    for name, long_video in ((SLIDING, 'slide'), (WHOLE, 'interpolate')):
        one = sampler(long_video)
        seconds = [_each_frame(one, params, start(one, 1, lengths[-1]), lengths[-1]) for _ in range(repeats)]
        by_frame = dict(enumerate(np.median(seconds, axis=0), 2))
        for length in lengths:
            times[name][length] = statistics.fmean(by_frame[length - i] for i in range(AVERAGED))
    for length in lengths:
        times[ATTENTION][length] = _attention_seconds(config, shape, length - 1, lengths[-1], repeats)
        whole = functools.partial(start, sampler('interpolate'), length - 1, length)
        _timed(whole)  # compiles
        prefill = statistics.median(_timed(whole)[0] for _ in range(repeats))
        times[UNCACHED][length] = config.sampler.mask_steps * prefill + times[WHOLE][lengths[0]]
    return times


def _start(params: Any, token_shape: tuple[int, ...], interval: Any, keys: Any, sampler: VideoSampler, given: int,
           frames: int) -> Any:  # fmt: skip
    context = jnp.zeros((token_shape[0], given, *token_shape[1:]))
    return sampler.start(params, context, frames, interval, keys)


def _each_frame(sampler: VideoSampler, params: Any, state: Any, frames: int) -> list[float]:
    """Seconds of frames 2 to `frames`; the program is compiled before."""
    spare = jax.tree.map(jnp.copy, state)
    jax.block_until_ready(sampler.next_frame(params, spare))
    taken = []
    for _ in range(frames - 1):
        seconds, (state, _) = _timed(functools.partial(sampler.next_frame, params, state))
        taken.append(seconds)
    return taken


def _attention_seconds(config: Config, shape: Any, filled: int, slots: int, repeats: int) -> float:
    """Of all the temporal attention that one frame takes, behind `filled` cached ones: K + 1 passes over L blocks."""
    model, clips = config.model, config.data.batch_size
    dtype = jnp.dtype(config.train.compute_dtype)
    capacity = 1 << (slots - 1).bit_length()
    sites = frame_sites(model, shape)
    row = jax.random.normal(jax.random.key(0), (clips, 1, sites, model.width), dtype)
    cached = jnp.ones((model.blocks, clips, capacity, sites, model.width), dtype)
    mask = jnp.concatenate([jnp.arange(capacity) < filled, jnp.ones(1, bool)])[None]

    @jax.jit
    def passes(row: jax.Array, cache: KVCache) -> jax.Array:
        def one(number: jax.Array, q: jax.Array) -> jax.Array:
            block = number % model.blocks
            return cached_attention(q, row, row, cache, block, mask, model.heads, merged=False)

        return jax.lax.fori_loop(0, model.blocks * (config.sampler.mask_steps + 1), one, row)

    call = functools.partial(passes, row, KVCache(cached, cached, jnp.int32(filled)))
    _timed(call)
    return statistics.median(_timed(call)[0] for _ in range(repeats))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = jax.block_until_ready(call())
    return time.perf_counter() - start, made
