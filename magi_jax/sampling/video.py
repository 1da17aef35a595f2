"""Frame-by-frame video sampling with a KV cache (MAGI §4, §A.4): prefill, then predict and commit frame after frame.

Dimension key: B clips, W frame slots of the window, N tokens of a frame, C token width, D width.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from magi_jax.config import Config, ConfigError
from magi_jax.config_checks import check_sampler
from magi_jax.diffusion.schedule import respaced_process
from magi_jax.layers.kv_cache import KVCache, append, empty_cache
from magi_jax.layers.layout import CLIPS, COPIED, SINGLE_DEVICE, Layout
from magi_jax.layers.linear import prepare_params
from magi_jax.layers.positions import stretched_positions
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.models.magi import ClipShape, Magi, frame_sites
from magi_jax.sampling.masked_frame import FrameNetworks, RevealRecipe, sample_frame
from magi_jax.sampling.state import STATE_LAYOUT, VideoState
from magi_jax.sampling.token_denoiser import token_denoiser

Array = jax.Array
Params = dict[str, Any]
Weights = dict[str, Any]  # {'trunk', 'head'}, of `sampling_weights`

OPENING_FRAMES = 2  # content, then motion; what follows is determined up to chance

CONTEXT_NOISE = 2**32 - 1  # folded into a clip's key where frames fold in their number


@functools.partial(jax.jit, static_argnums=0)
def sampling_weights(config: Config, params: Params) -> Weights:
    """Parameters {'trunk', 'head'} of a run -> what its sampler reads: the trunk's kernels in the dtype of products.

    Once for all frames: with parameters in float32 at hand in every frame, a device would hold both.
    """
    return {**params, 'trunk': prepare_params(params['trunk'], 'blocks', jnp.dtype(config.train.compute_dtype))}


@dataclasses.dataclass(frozen=True)
class VideoSampler:
    """The sampler of one trained model; hashable, so that its jitted methods compile once per shape.

    Attributes:
      config: of the run.
      shape: of the trained clips.
      layout: where clips and sites lie among devices.
    """

    config: Config
    shape: ClipShape
    layout: Layout = SINGLE_DEVICE

    @property
    def trunk(self) -> Magi:
        return Magi(self.config.model, self.shape, jnp.dtype(self.config.train.compute_dtype), layout=self.layout)

    @property
    def head(self) -> DiffusionHead:
        """Float32 always: the first reverse steps multiply the network's error by hundreds (spec of MAR's sampler)."""
        return DiffusionHead(self.config.model.head, self.shape.token_width, jnp.float32)

    def window_size(self, frames: int) -> int:
        """Frame slots W for a video of `frames` frames.

        'slide' holds the trained length and moves on; 'interpolate' holds the whole video, rounded up to a power of two
        so that all lengths of a bucket share one compilation.
        """
        if self.config.sampler.long_video == 'slide' or frames <= self.shape.frames:
            return self.shape.frames
        return 1 << (frames - 1).bit_length()

    def start(self, weights: Weights, context: Array, frames: int, interval: Array, clip_keys: Array) -> VideoState:
        """The state after the context.

        Args:
          weights: of `sampling_weights`.
          context: float32 [B, c, N, C] clean tokens of the context frames, c >= 0; of more than fit the window the last
            ones count.
          frames: length of the whole video, context included.
          interval: int32 [B], 1 <= interval <= shape.intervals.
          clip_keys: [B] keys.

        Raises:
          ConfigError: more context frames than the video has frames, a window that keeps no room to generate, or
            sampler fields that do not fit the model.
        """
        check_sampler(self.config)
        if context.shape[1] > frames:
            raise ConfigError(
                f'{context.shape[1]} context frames are more than the {frames} frames asked for: raise frames'
            )
        slots, trained = self.window_size(frames), self.shape.frames
        if frames > slots and not 0 < self.config.sampler.keep_frames < slots:
            raise ConfigError(
                f'sampler.keep_frames = {self.config.sampler.keep_frames} must lie in 1..{slots - 1}'
                f' (trained frames - 1) for a video of {frames} frames'
            )
        positions = stretched_positions(frames if slots > trained else trained, trained)
        positions = jnp.pad(jnp.asarray(positions), (0, max(0, slots - len(positions))), mode='edge')
        kept = context[:, -slots:]
        window = jnp.pad(kept, ((0, 0), (0, slots - kept.shape[1]), (0, 0), (0, 0)))
        return self._prefill(weights, window, positions, interval, clip_keys, kept.shape[1], context.shape[1])

    @functools.partial(jax.jit, static_argnums=0)
    def _prefill(
        self, weights: Weights, window: Array, positions: Array, interval: Array, clip_keys: Array, filled: Array,
        frame: Array,
    ) -> VideoState:  # fmt: skip
        def prefill(*arguments: Any) -> VideoState:
            weights, window, positions, interval, clip_keys, filled, frame = arguments
            numbers = frame - filled + jnp.arange(window.shape[1])
            window = self._observed(window, numbers, clip_keys)
            cache = self._empty_cache(window.shape[0], window.shape[1])
            frame = jnp.asarray(frame, jnp.int32)
            state = VideoState(cache, window, positions, interval, clip_keys, frame, context=frame)
            return self._read_window(weights['trunk'], state, filled, window.shape[1])

        inputs = (COPIED, CLIPS, COPIED, CLIPS, CLIPS, COPIED, COPIED)
        whole = self.layout.over_devices(prefill, inputs, STATE_LAYOUT)
        return whole(weights, window, positions, interval, clip_keys, filled, frame)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def next_frame(self, weights: Weights, state: VideoState) -> tuple[VideoState, Array]:
        """Draws one frame -> (state with the frame committed, its clean tokens float32 [B, N, C]). Donates `state`."""
        return self.layout.over_devices(self._next_frame, (COPIED, STATE_LAYOUT), (STATE_LAYOUT, CLIPS))(weights, state)

    def _next_frame(self, weights: Weights, state: VideoState) -> tuple[VideoState, Array]:
        trunk = weights['trunk']
        full = state.cache.length == state.cache.capacity
        state = jax.lax.cond(full, functools.partial(self._slide, trunk), lambda s: s, state)
        position, recipe = state.positions[state.cache.length], self._recipe(state)

        def condition(cache: KVCache, tokens: Array, mask: Array) -> Array:
            return self.trunk.apply(trunk, tokens, mask, state.interval, position, cache, method=Magi.predict)

        blind = functools.partial(condition, self._empty_cache(state.window.shape[0], 0))
        networks = FrameNetworks(
            condition=functools.partial(condition, state.cache),
            denoiser=functools.partial(token_denoiser, self.head, weights['head'], recipe.process),
            blind=None if self.config.sampler.guidance == 1 else blind,
        )
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.clip_keys, state.frame)
        tokens = sample_frame(networks, recipe, keys, (self.shape.tokens, self.shape.token_width))
        return self._commit(trunk, state, tokens, position), tokens

    def frames(self, weights: Weights, state: VideoState, count: int) -> Iterator[Array]:
        """Yields the clean tokens [B, N, C] of `count` new frames as they are dispatched. Donates `state`."""
        for _ in range(count):
            state, tokens = self.next_frame(weights, state)
            yield tokens

    def _recipe(self, state: VideoState) -> RevealRecipe:
        sampler, head = self.config.sampler, self.config.model.head
        decayed = sampler.temperature_decay * 10.0 ** -(state.frame - state.context + 1)
        temperature = sampler.temperature + decayed
        temperature = jnp.where(state.frame < OPENING_FRAMES, sampler.opening_temperature, temperature)
        process = respaced_process(head.timesteps, sampler.denoise_steps, sampler.start, sampler.spacing)
        return RevealRecipe(
            mask_steps=sampler.mask_steps,
            process=process,
            prediction=head.prediction,
            temperature=temperature,
            x0_clip=sampler.x0_clip,
            solver=sampler.solver,
            guidance=sampler.guidance,
            guidance_schedule=sampler.guidance_schedule,
        )

    def _empty_cache(self, clips: int, slots: int) -> KVCache:
        model = self.config.model
        sites = self.layout.local_size(frame_sites(model, self.shape))
        return empty_cache(model.blocks, clips, slots, sites, model.width, jnp.dtype(self.config.train.compute_dtype))

    def _observed(self, tokens: Array, numbers: Array, clip_keys: Array) -> Array:
        """Clean tokens [B, R, N, C] of frames `numbers` [R] as the model is to observe them (A2)."""
        sampler, masking = self.config.sampler, self.config.masking
        if not sampler.context_noise:
            return tokens
        noise_key = jax.vmap(lambda key: jax.random.fold_in(key, CONTEXT_NOISE))(clip_keys)

        def frame_noise(key: Array, number: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, number), tokens.shape[2:])

        noise = jax.vmap(jax.vmap(frame_noise, (None, 0)), (0, None))(noise_key, numbers)
        return tokens + masking.noise_std[sampler.context_level] * noise

    def _observe(self, trunk: Weights, tokens: Array, positions: Array, interval: Array, cache: Any) -> Any:
        level = jnp.full(tokens.shape[:2], self.config.sampler.context_level, jnp.int32)
        return self.trunk.apply(trunk, tokens, level, interval, positions, cache, method=Magi.observe)

    def _commit(self, trunk: Weights, state: VideoState, tokens: Array, position: Array) -> VideoState:
        """Encodes the finished frame as an observation and appends its keys and values."""
        observed = self._observed(tokens[:, None], state.frame[None], state.clip_keys)
        k, v = self._observe(trunk, observed, position[None], state.interval, state.cache)
        window = jax.lax.dynamic_update_slice_in_dim(state.window, observed, state.cache.length, axis=1)
        return state.replace(cache=append(state.cache, k, v, 1), window=window, frame=state.frame + 1)

    def _slide(self, trunk: Weights, state: VideoState) -> VideoState:
        """Restarts a full window from its last `keep_frames` frames: positions stay inside the trained ones."""
        keep = min(max(self.config.sampler.keep_frames, 1), state.window.shape[1])  # any number is fine until it slides
        window = jnp.roll(state.window, keep, axis=1)
        return self._read_window(trunk, state.replace(window=window), keep, keep)

    def _read_window(self, trunk: Weights, state: VideoState, filled: Array | int, rows: int) -> VideoState:
        """Fills the cache with the first `filled` <= `rows` frames of the window, by one causal pass over `rows`."""
        clips, slots = state.window.shape[:2]
        nothing = self._empty_cache(clips, 0)
        k, v = self._observe(trunk, state.window[:, :rows], state.positions[:rows], state.interval, nothing)
        cache = self._empty_cache(clips, slots)
        return state.replace(cache=append(cache, k, v, filled))
