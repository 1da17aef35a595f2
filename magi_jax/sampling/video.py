"""Frame-by-frame video sampling with a KV cache (MAGI §4, §A.4): prefill, then predict and append each frame.

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
from magi_jax.layers.kv_cache import KVCache, append
from magi_jax.layers.layout import CLIPS, COPIED, SINGLE_DEVICE, Layout
from magi_jax.layers.linear import prepare_params
from magi_jax.models.api import VideoModel, make_model
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.sampling.masked_frame import FrameNetworks, RevealRecipe, sample_frame
from magi_jax.sampling.state import STATE_LAYOUT, VideoState
from magi_jax.sampling.token_denoiser import token_denoiser

Array = jax.Array
Params = dict[str, Any]
Weights = dict[str, Any]  # {'trunk', 'head'} from `sampling_weights`

OPENING_FRAMES = 2  # they decide content and motion; later frames follow from them

CONTEXT_NOISE = 2**32 - 1  # folded into the key of a clip, in place of a frame number


@functools.partial(jax.jit, static_argnums=0)
def sampling_weights(config: Config, params: Params) -> Weights:
    """Convert the parameters {'trunk', 'head'} of a run for its sampler: trunk kernels in the compute dtype.

    The conversion runs once for all frames. Within each frame, a device would hold both copies.
    """
    return {**params, 'trunk': prepare_params(params['trunk'], 'blocks', jnp.dtype(config.train.compute_dtype))}


@dataclasses.dataclass(frozen=True)
class VideoSampler:
    """The sampler of one trained model. It is hashable, so its jitted methods compile once per shape.

    Attributes:
      config: config of the run.
      shape: shape of the trained clips.
      layout: layout of clips and sites on devices.
    """

    config: Config
    shape: ClipShape
    layout: Layout = SINGLE_DEVICE

    @property
    def trunk(self) -> VideoModel:
        return make_model(self.config, self.shape, self.layout)

    @property
    def head(self) -> DiffusionHead:
        """The head in float32: the first reverse steps amplify its error several hundred times."""
        return DiffusionHead(self.config.model.head, self.shape.token_width, jnp.float32)

    def window_size(self, frames: int) -> int:
        """Return the number of frame slots W for a video of `frames` frames.

        'slide' holds the trained length and slides. 'interpolate' and 'extend' hold the complete video, rounded up to a
        power of two, so that similar lengths share one compilation.
        """
        if self.config.sampler.long_video == 'slide' or frames <= self.shape.frames:
            return self.shape.frames
        return 1 << (frames - 1).bit_length()

    def start(
        self, weights: Weights, context: Array, frames: int, conditions: Conditions, clip_keys: Array
    ) -> VideoState:
        """Return the state after the context.

        Args:
          weights: result of `sampling_weights`.
          context: clean tokens of the context frames, float32 [B, c, N, C], c >= 0; if they exceed the window, only the
            last ones are used.
          frames: length of the video, context included.
          conditions: frame interval, 1 <= interval <= shape.intervals, and text.
          clip_keys: keys [B].

        Raises:
          ConfigError: the context is longer than the video, `keep_frames` leaves no room to generate, or sampler fields
            do not match the model.
        """
        check_sampler(self.config)
        if context.shape[1] > frames:
            raise ConfigError(
                f'{context.shape[1]} context frames are more than the {frames} frames requested: raise frames'
            )
        slots = self.window_size(frames)
        if frames > slots and not 0 < self.config.sampler.keep_frames < slots:
            raise ConfigError(
                f'sampler.keep_frames = {self.config.sampler.keep_frames} does not allow a video of {frames} frames:'
                f' choose 1 to {slots - 1} (trained frames - 1)'
            )
        positions = jnp.asarray(self.trunk.positions(frames, slots))
        used = context[:, -slots:]
        window = jnp.pad(used, ((0, 0), (0, slots - used.shape[1]), (0, 0), (0, 0)))
        counts = used.shape[1], context.shape[1], frames
        return self._prefill(weights, window, positions, conditions, clip_keys, counts)

    @functools.partial(jax.jit, static_argnums=0)
    def _prefill(
        self,
        weights: Weights,
        window: Array,
        positions: Array,
        conditions: Conditions,
        clip_keys: Array,
        counts: tuple[Array, Array, Array],
    ) -> VideoState:
        def prefill(*arguments: Any) -> VideoState:
            weights, window, positions, conditions, clip_keys, (filled, frame, frames) = arguments
            numbers = frame - filled + jnp.arange(window.shape[1])
            window = self._observed(window, numbers, clip_keys)
            if self._guided_by_text:
                conditions = _join(conditions, conditions.without_text())
            conditions = self.trunk.prepare(weights['trunk'], conditions)
            cache = self.trunk.empty_cache(len(conditions.interval), window.shape[1])
            frame, frames = jnp.asarray(frame, jnp.int32), jnp.asarray(frames, jnp.int32)
            state = VideoState(cache, window, positions, conditions, clip_keys, frame, context=frame, frames=frames)
            return self._read_window(weights['trunk'], state, filled, window.shape[1])

        inputs = (COPIED, CLIPS, COPIED, CLIPS, CLIPS, (COPIED, COPIED, COPIED))
        sharded = self.layout.over_devices(prefill, inputs, STATE_LAYOUT)
        return sharded(weights, window, positions, conditions, clip_keys, counts)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def next_frame(self, weights: Weights, state: VideoState) -> tuple[VideoState, Array]:
        """Sample one frame. Return the state after it and its clean tokens float32 [B, N, C]. Donate `state`."""
        return self.layout.over_devices(self._next_frame, (COPIED, STATE_LAYOUT), (STATE_LAYOUT, CLIPS))(weights, state)

    def _next_frame(self, weights: Weights, state: VideoState) -> tuple[VideoState, Array]:
        trunk = weights['trunk']
        full = state.cache.length == state.cache.capacity
        state = jax.lax.cond(full, functools.partial(self._slide, trunk), lambda s: s, state)
        position, recipe = state.positions[state.cache.length], self._recipe(state)

        def predict(tokens: Array, mask: Array, cache: KVCache) -> Array:
            inputs = tokens, mask, state.conditions, position, cache
            return self.trunk.apply(trunk, *inputs, method='predict')

        def condition(tokens: Array, mask: Array) -> tuple[Array, Array | None]:
            if self._guided_by_text:
                return tuple(jnp.split(predict(_join(tokens, tokens), _join(mask, mask), state.cache), 2))
            z = predict(tokens, mask, state.cache)
            if not self.config.is_guided:
                return z, None
            return z, predict(tokens, mask, self.trunk.empty_cache(len(tokens), 0))

        denoiser = functools.partial(token_denoiser, self.head, weights['head'], recipe.process)
        networks = FrameNetworks(condition, denoiser)
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.clip_keys, state.frame)
        tokens = sample_frame(networks, recipe, keys, (self.shape.tokens, self.shape.token_width))
        if self.config.sampler.token_clip < jnp.inf:
            bound = jnp.where(state.frame > state.context, self.config.sampler.token_clip, jnp.inf)
            tokens = jnp.clip(tokens, -bound, bound)
        return self._commit(trunk, state, tokens, position), tokens

    def frames(self, weights: Weights, state: VideoState, count: int) -> Iterator[Array]:
        """Yield the clean tokens [B, N, C] of `count` new frames as they are dispatched. Donate `state`."""
        for _ in range(count):
            state, tokens = self.next_frame(weights, state)
            yield tokens

    def _recipe(self, state: VideoState) -> RevealRecipe:
        sampler, head = self.config.sampler, self.config.model.head
        decayed = sampler.temperature_decay * 10.0 ** -(state.frame - state.context + 1)
        temperature = sampler.temperature + decayed
        if sampler.temperature_drop:
            done = (state.frame - state.context) / jnp.maximum(state.frames - state.context, 1)
            temperature = jnp.maximum(temperature - sampler.temperature_drop * done, 0.0)
        if sampler.opening_temperature is not None:
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

    @property
    def _guided_by_text(self) -> bool:
        """True if the cache holds every clip twice, with and without text."""
        return self.config.is_guided and self.trunk.guided_away_from == 'text'

    def _observed(self, tokens: Array, numbers: Array, clip_keys: Array) -> Array:
        """Return the tokens that the model observes for clean tokens [B, R, N, C] of frames `numbers` [R] (A2)."""
        sampler, masking = self.config.sampler, self.config.masking
        if not sampler.context_noise:
            return tokens
        noise_key = jax.vmap(lambda key: jax.random.fold_in(key, CONTEXT_NOISE))(clip_keys)

        def frame_noise(key: Array, number: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, number), tokens.shape[2:])

        noise = jax.vmap(jax.vmap(frame_noise, (None, 0)), (0, None))(noise_key, numbers)
        return tokens + masking.noise_std[sampler.context_level] * noise

    def _observe(self, trunk: Weights, tokens: Array, positions: Array, conditions: Conditions, cache: Any) -> Any:
        if self._guided_by_text:
            tokens = _join(tokens, tokens)
        level = jnp.full(tokens.shape[:2], self.config.sampler.context_level, jnp.int32)
        inputs = tokens, conditions.replace(level=level), positions, cache
        return self.trunk.apply(trunk, *inputs, method='observe')

    def _commit(self, trunk: Weights, state: VideoState, tokens: Array, position: Array) -> VideoState:
        """Encode the finished frame as an observation, and append its keys and values to the cache."""
        observed = self._observed(tokens[:, None], state.frame[None], state.clip_keys)
        k, v = self._observe(trunk, observed, position[None], state.conditions, state.cache)
        window = jax.lax.dynamic_update_slice_in_dim(state.window, observed, state.cache.length, axis=1)
        return state.replace(cache=append(state.cache, k, v, 1), window=window, frame=state.frame + 1)

    def _slide(self, trunk: Weights, state: VideoState) -> VideoState:
        """Restart a full window from its last `keep_frames` frames, so that positions stay within the trained range."""
        keep = min(max(self.config.sampler.keep_frames, 1), state.window.shape[1])  # unused unless the window slides
        window = jnp.roll(state.window, keep, axis=1)
        return self._read_window(trunk, state.replace(window=window), keep, keep)

    def _read_window(self, trunk: Weights, state: VideoState, filled: Array | int, rows: int) -> VideoState:
        """Fill the cache with the first `filled` <= `rows` frames of the window by one causal pass over `rows`."""
        clips = len(state.conditions.interval)
        empty = self.trunk.empty_cache(clips, 0)
        k, v = self._observe(trunk, state.window[:, :rows], state.positions[:rows], state.conditions, empty)
        cache = self.trunk.empty_cache(clips, state.window.shape[1])
        return state.replace(cache=append(cache, k, v, filled))


def _join(strong: Any, weak: Any) -> Any:
    """Concatenate two trees of arrays over clips."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), strong, weak)
