"""Times the n-th frame of a video: with the KV cache, with cached attention alone, and without a cache.

Dimension key: B clips, F frames of a video, N tokens of a frame, S sites, C token width, D width, L blocks.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magi_jax.benchmarks import problem, resources
from magi_jax.config import Config, MeshConfig
from magi_jax.layers.cached_attention import cached_attention
from magi_jax.layers.kv_cache import KVCache
from magi_jax.models.conditions import Conditions
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import make_mesh
from magi_jax.sampling.stream import clip_keys
from magi_jax.sampling.video import VideoSampler, sampling_weights

AVERAGED = 8  # frames up to the n-th that are averaged, so that restarts of a sliding window are shared among frames

SLIDING, WHOLE, ATTENTION, UNCACHED = 'sliding window', 'all frames cached', 'its attention alone', 'no cache'


def measure(config: Config, lengths: Sequence[int], repeats: int) -> dict[str, dict[int, float]]:
    """Measure wall seconds of the n-th frame on one device, for every n of `lengths`. Weights are random.

    Args:
      config: config of a generator; `data.batch_size` clips are sampled together.
      lengths: values of n, ascending, each at least AVERAGED + 1.
      repeats: repetitions of each measurement; the median counts.

    Returns:
      Name of the variant -> n -> seconds. `no cache` adds the time to compute keys and values of the n - 1 earlier
      frames at each of the K mask steps to the time of a frame with a short cache.
    """
    tokenizer = problem.latent_bytes(config)
    shape, clips = clip_shape(config, tokenizer), config.data.batch_size
    layout = sampling_layout(config, shape, make_mesh(MeshConfig(), jax.devices()[:1]))
    params = problem.random_params(make_objective(config, tokenizer).init, config.seed)
    weights = sampling_weights(config, params)

    def sampler(long_video: str) -> VideoSampler:
        recipe = dataclasses.replace(config.sampler, long_video=long_video)
        return VideoSampler(dataclasses.replace(config, sampler=recipe), shape, layout)

    def start(one: VideoSampler, given: int, frames: int) -> Any:
        context = jnp.zeros((clips, given, shape.tokens, shape.token_width))
        return one.start(
            weights, context, frames, Conditions(jnp.ones(clips, jnp.int32)), clip_keys(0, np.arange(clips))
        )

    times = {name: {} for name in (SLIDING, WHOLE, ATTENTION, UNCACHED)}
    for name, long_video in ((SLIDING, 'slide'), (WHOLE, 'interpolate')):
        one = sampler(long_video)
        seconds = [_each_frame(one, weights, start(one, 1, lengths[-1]), lengths[-1]) for _ in range(repeats)]
        by_frame = dict(enumerate(np.median(seconds, axis=0), 2))
        for length in lengths:
            times[name][length] = statistics.fmean(by_frame[length - i] for i in range(AVERAGED))
    whole = sampler('interpolate')
    for length in lengths:
        attention = _temporal_attention(whole, clips, length - 1, lengths[-1])
        times[ATTENTION][length] = _median(attention, repeats)
        prefill = _median(lambda length=length: start(whole, length - 1, length), repeats)
        times[UNCACHED][length] = config.sampler.mask_steps * prefill + times[WHOLE][lengths[0]]
    return times


def _each_frame(sampler: VideoSampler, weights: Any, state: Any, frames: int) -> list[float]:
    """Return the seconds of frames 2 to `frames`; the program is compiled before."""

    def advance() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(sampler.next_frame(weights, state))

    first = jax.tree.map(jnp.copy, state)
    advance()
    state = first
    return [resources.measure(advance)['wall'] for _ in range(frames - 1)]


def _temporal_attention(sampler: VideoSampler, clips: int, filled: int, slots: int) -> Callable[[], jax.Array]:
    """Return a function that runs the temporal attention of one frame.

    That is K + 1 passes over L blocks with `filled` cached frames.
    """
    model, dtype = sampler.config.model, jnp.dtype(sampler.config.train.compute_dtype)
    sites, capacity = sampler.trunk.sites, sampler.window_size(slots)
    row = jax.random.normal(jax.random.key(0), (clips, 1, sites, model.width), dtype)
    cached = jnp.ones((model.blocks, clips, capacity, sites, model.width), dtype)
    mask = jnp.concatenate([jnp.arange(capacity) < filled, jnp.ones(1, bool)])[None]
    count, merged = model.blocks * (sampler.config.sampler.mask_steps + 1), sampler.layout.lanes > 1

    @jax.jit
    def passes(row: jax.Array, cache: KVCache) -> jax.Array:
        def one(number: jax.Array, q: jax.Array) -> jax.Array:
            return cached_attention(q, row, row, cache, number % model.blocks, mask, model.heads, merged)

        return jax.lax.fori_loop(0, count, one, row)

    return lambda: passes(row, KVCache(cached, cached, jnp.int32(filled)))


def _median(call: Callable[[], Any], repeats: int) -> float:
    """Return the median wall seconds of a call, after one that does not count."""
    jax.block_until_ready(call())
    return statistics.median(resources.measure(lambda: jax.block_until_ready(call()))['wall'] for _ in range(repeats))
