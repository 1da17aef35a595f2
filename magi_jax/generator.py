"""A trained generator as a library: arrays in, arrays out.

    generator = magi_jax.load('runs/quickstart/magi')
    video = generator.sample(frames=64, num=4, seed=0, temperature=0.9)

Dimension key: B clips, T frames, H W pixels.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from magi_jax.checkpoint import Checkpoints, experiment_folder, load_config, newest_run
from magi_jax.config import Config, ConfigError, SamplerConfig, TextConfig
from magi_jax.models.api import make_model
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.hosts import gather_to_hosts, replicate, shard
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, replicated_sharding
from magi_jax.pretrained.folder import is_pretrained, read_facts, read_pretrained, read_results, save_pretrained
from magi_jax.pretrained.hub import find_folder, push_folder
from magi_jax.reconstruction import all_devices, reconstruct, rows_of_parts
from magi_jax.sampling.arguments import check_whole, replace_sampler_fields
from magi_jax.sampling.attention_maps import attention_to_past
from magi_jax.sampling.progress import Progress, frame_bar
from magi_jax.sampling.request import VideoRequest
from magi_jax.sampling.stream import clip_keys, sample_clips, stream_clips
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.text_encoders.api import TextEncoder, open_encoder
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.tokenizers.folder import load_tokenizer


@dataclasses.dataclass(frozen=True, repr=False)
class Generator:
    """A finished or unfinished training run, ready to sample from.

    Attributes:
      config: config of the run; `with_sampler` replaces its `sampler`.
      weights: EMA parameters after `sampling_weights`, replicated on every device of every host.
      tokenizer: tokenizer of the run.
      workdir: folder of the run, or of the newest of its stages.
      step: step of the checkpoint.
      params: EMA parameters {'trunk', 'head'} in float32 as NumPy arrays, which `save_pretrained` writes.
    """

    config: Config
    weights: Any
    tokenizer: Tokenizer
    workdir: str = ''
    step: int | None = None
    params: Any = None

    def __repr__(self) -> str:
        model, data = self.config.model, self.config.data
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.weights))
        size = f'{model.blocks} blocks of width {model.width}, {parameters:,} parameters'
        run = f'{self.workdir!r}, step={self.step}, {size}, {data.height}x{data.width} pixels'
        return f'Generator({run}, tokenizer={self.config.tokenizer.kind})'

    def with_sampler(self, sampler: SamplerConfig) -> 'Generator':
        """Return the same model with other sampler settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, sampler=sampler))

    def with_size(self, height: int, width: int) -> 'Generator':
        """Return the same model for videos of another size in pixels.

        Raises:
          ConfigError: the model has position tables of its trained size, or the tokenizer cannot encode this size.
        """
        size, data = (check_whole('height', height, 1, 8192), check_whole('width', width, 1, 8192)), self.config.data
        if size != (data.height, data.width):
            if not make_model(self.config, clip_shape(self.config, self.tokenizer)).resizable:
                trained = f'{data.height}x{data.width}'
                raise ConfigError(
                    f'{height}x{width} is not the trained size of this {self.config.system}: give {trained}'
                )
            data = dataclasses.replace(data, height=height, width=width)
        resized = dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))
        clip_shape(resized.config, self.tokenizer)
        return resized

    def sample(
        self,
        context: np.ndarray | None = None,
        frames: int = 16,
        *,
        num: int = 1,
        interval: int = 1,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        per_device_batch: int | None = None,
        progress: bool | Progress = True,
        **sampler: Any,
    ) -> np.ndarray:
        """Sample videos that continue `context`, or unconditional videos, on the devices of all hosts.

        Several hosts must make the same call. Each host gets all videos.

        Args:
          context: first frames of each video, uint8 [B, c, H, W, 3] with c >= 0; None for unconditional videos. A
            temporal tokenizer accepts certain c only, e.g. 1 + 4k.
          frames: length of the videos, context included; at least 1.
          num: number of unconditional videos.
          interval: frame interval in raw frames, 1..data.max_interval of the run.
          seed: seed from 0 to 2^32 - 1; the same seed gives the same videos.
          numbers: numbers [B] of the videos among all videos of this seed, so that a large set can be sampled in parts.
            None: 0..B-1.
          prompt: text that describes the videos, one for all or one for each; only for a model with text. None: videos
            without text.
          per_device_batch: number of videos per device and part. If it is set, videos are bit-identical on any number
            of devices. None: all videos in one part.
          progress: True for a progress bar in a terminal or notebook, False for none. A function is called for each
            part, as in `sampling.stream.sample_clips`.
          **sampler: fields of `SamplerConfig` for this call, e.g. temperature=0.9, denoise_steps=10.

        Returns:
          uint8 [B, frames, H, W, 3].

        Raises:
          ConfigError: an argument is not allowed or does not match the run.
        """
        request = VideoRequest(context, frames, num, interval, seed, numbers, prompt)
        parts, count = self._with_fields(sampler)._inputs(request, per_device_batch)
        bar = contextlib.nullcontext(progress) if callable(progress) else frame_bar(len(parts), bool(progress))
        with bar as watch:
            return np.concatenate([gather_to_hosts(sample_clips(**part, progress=watch)) for part in parts])[:count]

    def stream(
        self,
        context: np.ndarray | None = None,
        frames: int = 16,
        *,
        num: int = 1,
        interval: int = 1,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        **sampler: Any,
    ) -> Iterator[np.ndarray]:
        """Return an iterator over the frames of the same videos, context first, in constant memory.

        Arguments are those of `sample`. While the caller handles a frame, the devices compute the next one.

        Returns:
          An iterator over `frames` arrays uint8 [B, H, W, 3].

        Raises:
          ConfigError: as in `sample`; also if the tokenizer is not frame-wise.
        """
        request = VideoRequest(context, frames, num, interval, seed, numbers, prompt)
        (inputs,), count = self._with_fields(sampler)._inputs(request, per_device_batch=None)
        context_frames, new_frames = np.moveaxis(inputs['context'][:count], 1, 0), stream_clips(**inputs)
        new_frames = (gather_to_hosts(frame)[:count] for frame in _prefetch_to_host(new_frames))
        return itertools.chain(context_frames, new_frames)

    def _with_fields(self, fields: dict[str, Any]) -> 'Generator':
        if not fields:
            return self
        arguments = [*VideoRequest.__dataclass_fields__, 'per_device_batch', 'progress']
        return self.with_sampler(replace_sampler_fields(self.config.sampler, fields, arguments))

    def _inputs(self, request: VideoRequest, per_device_batch: int | None) -> tuple[list[dict[str, Any]], int]:
        """Return the arguments of `sample_clips` for each part, and the number of requested videos.

        Every device gets the same number of clips.
        """
        mesh, (context, numbers, prompts) = all_devices(), request.checked(self.config)
        shape = clip_shape(self.config, self.tokenizer)
        text = self._text(prompts, len(context))
        shared = {
            'sampler': VideoSampler(self.config, shape, sampling_layout(self.config, shape, mesh)),
            'weights': self.weights,
            'tokenizer': replicate(mesh, self.tokenizer),
            'frames': request.frames,
            'sharding': batch_sharding(mesh),
        }

        def part(rows: np.ndarray) -> dict[str, Any]:
            interval, own_text = np.full(rows.shape, request.interval, np.int32), jax.tree.map(lambda x: x[rows], text)
            return shared | {
                'context': context[rows],
                'conditions': Conditions(interval, text=own_text),
                'keys': clip_keys(request.seed, numbers[rows]),
            }

        return [part(rows) for rows in rows_of_parts(mesh, len(context), per_device_batch)], len(context)

    def _text(self, prompts: list[str] | None, clips: int) -> TextStates | None:
        """Return the text states of the prompts. Clips without a prompt get empty text."""
        text = self.config.text
        if not text.encoder:
            return None
        if prompts is None:
            states = np.zeros((clips, text.length, text.width), np.float32)
            return TextStates(states, np.zeros(states.shape[:2], bool), np.zeros(clips, bool))
        encoder = _open_encoder(text, self.workdir)
        unique, rows = np.unique(prompts, return_inverse=True)
        states, mask = encoder.encode(unique.tolist())
        return TextStates(states[rows], mask[rows], np.ones(clips, bool))

    def reconstruct(self, video: np.ndarray, per_device_batch: int | None = None) -> np.ndarray:
        """Encode and decode videos with the tokenizer, which bounds the quality of samples of this run.

        The devices of all hosts share the work. All hosts must make the same call.

        Args:
          video: uint8 [B, T, H, W, 3].
          per_device_batch: as in `sample`.

        Returns:
          uint8 [B, T, H, W, 3].

        Raises:
          ConfigError: the tokenizer does not accept this length or size.
        """
        return reconstruct(self.tokenizer, video, per_device_batch)

    def attention(self, video: np.ndarray, interval: int = 1) -> np.ndarray:
        """Return how the tokens of the frame after `video` attend to each frame, before any of them is revealed.

        Args:
          video: uint8 [B, T, H, W, 3] with T less than the trained length.
          interval: as in `sample`.

        Returns:
          float32 [L, B, H, N, T + 1]: temporal layers, clips, heads, tokens, frames. The last frame is the new one.
          Weights over frames sum to 1.
        """
        sampler = VideoSampler(self.config, clip_shape(self.config, self.tokenizer))
        return attention_to_past(sampler, self.weights, self.tokenizer, video, interval)

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        name: str | None = None,
        license: str = 'unknown',
        metrics: str | os.PathLike | None = None,
    ) -> None:
        """Write weights, config, tokenizer and model card to a folder that `load` reads on any machine.

        Args:
          folder: new or empty folder, or one that this function wrote before.
          name: name of the model in its card; None for the name of the folder.
          license: Hub identifier of the licence of the weights, e.g. 'apache-2.0'.
          metrics: metrics.json of `launch.evaluate` for the model card; None for the one in the folder of the run.

        Raises:
          ConfigError: the folder holds other files, or this generator does not come from `load`.
        """
        if self.params is None:
            raise ConfigError('this Generator has no float32 parameters to save: create it with magi_jax.load')
        facts = read_facts(self.workdir, self.step)
        if metrics is not None:
            facts |= {'metrics': read_results(metrics)}
        name = name or Path(folder).resolve().name
        save_pretrained(folder, self.config, self.tokenizer, self.params, facts, name, license, self.workdir)

    def push_to_hub(self, name: str, *, private: bool = False, **card: Any) -> str:
        """Save to the Hugging Face Hub repository `name`, which is created if missing. Return its address.

        Args:
          name: 'user/name'.
          private: True to make a new repository private.
          **card: `license` and `metrics` of `save_pretrained`.

        Raises:
          ConfigError: the Hub client is missing (`pip install 'magi_jax[hub]'`), or the upload failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=name, **card)
            return push_folder(folder, name, private)


@functools.lru_cache(maxsize=1)
def _open_encoder(text: TextConfig, folder: str) -> TextEncoder:
    """Open the text encoder of a run once for many calls."""
    return open_encoder(text, folder)


def load(workdir: str | os.PathLike, revision: str | None = None) -> Generator:
    """Load the newest checkpoint of a training run, or weights that `save_pretrained` wrote.

    Args:
      workdir: folder of a run, stage or `save_pretrained`, or 'user/name' on the Hugging Face Hub, downloaded once.
      revision: branch, tag or commit of a Hub repository.

    Raises:
      FileNotFoundError: the folder has no run, checkpoint or tokenizer.
      ConfigError: the run is not a generator run, or a file differs from the one that `save_pretrained` wrote.
    """
    workdir = find_folder(workdir, revision)
    if is_pretrained(workdir):
        config, tokenizer, params, step = read_pretrained(workdir)
        weights = sampling_weights(config, shard(replicated_sharding(all_devices()), params))
        return Generator(config, weights, tokenizer, str(workdir), step, params)
    workdir = newest_run(workdir)
    config = load_config(workdir)
    if config.objective == 'autoencoder':
        raise ConfigError(f'{workdir} holds an autoencoder, not a generator: give the --workdir of a generator run')
    if config.tokenizer.kind == 'identity':
        tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    else:
        tokenizer = load_tokenizer(experiment_folder(workdir) / 'tokenizer')
    boxed = jax.eval_shape(make_objective(config, tokenizer).init, jax.random.key(0))
    replicated = replicated_sharding(all_devices())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), nn.unbox(boxed))
    checkpoints = Checkpoints(workdir)
    params = checkpoints.restore({'ema': abstract})['ema']
    checkpoints.close()
    weights, params = sampling_weights(config, params), jax.tree.map(np.asarray, params)
    return Generator(config, weights, tokenizer, str(workdir), checkpoints.restored_step, params)


def _prefetch_to_host(frames: Iterator[jax.Array]) -> Iterator[jax.Array]:
    """Yield each frame after the next one is dispatched and its own copy to the host has started."""
    waiting = None
    for frame in frames:
        if frame.is_fully_addressable:
            frame.copy_to_host_async()
        if waiting is not None:
            yield waiting
        waiting = frame
    if waiting is not None:
        yield waiting
