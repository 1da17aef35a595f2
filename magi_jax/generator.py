"""A trained generator as a library: arrays in, arrays out.

    generator = magi_jax.load('runs/quickstart/magi')
    video = generator.sample(frames=64, num=4, seed=0)

Dimension key: B clips, T frames, H W pixels.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from magi_jax.checkpoint import Checkpoints, load_config
from magi_jax.config import Config, ConfigError, MeshConfig, SamplerConfig
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.hosts import everywhere, padded_rows, whole
from magi_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from magi_jax.sampling.video import VideoSampler, sample_clips
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.tokenizers.folder import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Generator:
    """A finished or still training run, ready to sample from.

    Attributes:
      config: of the run; `sampler` may be replaced with `with_sampler`.
      params: EMA weights {'trunk', 'head'}, whole on every device of every host.
      tokenizer: the one that the run was trained with.
    """

    config: Config
    params: Any
    tokenizer: Tokenizer

    def with_sampler(self, sampler: SamplerConfig) -> 'Generator':
        """The same model under other sampler settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, sampler=sampler))

    def sample(
        self,
        context: np.ndarray | None = None,
        frames: int = 16,
        *,
        num: int = 1,
        interval: int = 1,
        seed: int = 0,
        **progress: Any,
    ) -> np.ndarray:
        """Videos that continue `context`, or begin from nothing; shared among the devices of all hosts.

        Several hosts must make the same call; each gets all videos.

        Args:
          context: uint8 [B, c, H, W, 3], c >= 0 first frames of each video; None: unconditional.
          frames: length of the videos, context included; any.
          num: videos from nothing when there is no context.
          interval: raw frames between two frames, 1..data.max_interval of the run.
          seed: same seed, same videos.
          **progress: `progress=`, as in `sampling.video.sample_clips`.

        Returns:
          uint8 [B, frames, H, W, 3].

        Raises:
          ConfigError: an argument does not fit the run.
        """
        data = self.config.data
        if context is None:
            context = np.zeros((num, 0, data.height, data.width, 3), np.uint8)
        if context.ndim != 5 or context.shape[2:] != (data.height, data.width, 3) or context.dtype != np.uint8:
            raise ConfigError(
                f'context {context.dtype} {context.shape} must be uint8 [B, c, {data.height}, {data.width}, 3]'
            )
        if not 1 <= interval <= data.max_interval:
            raise ConfigError(f'interval {interval} must lie in 1..{data.max_interval}, what this run was trained on')
        sampler = VideoSampler(self.config, clip_shape(self.config, self.tokenizer))
        mesh = _mesh()
        rows = padded_rows(mesh, context.shape[0])
        intervals = np.full(rows.shape, interval, np.int32)
        tokenizer, sharding = everywhere(mesh, self.tokenizer), batch_sharding(mesh)
        video = sample_clips(
            sampler, self.params, tokenizer, context[rows], frames, intervals, seed, sharding=sharding, **progress
        )
        return whole(video)[: context.shape[0]]


def load(workdir: str) -> Generator:
    """The newest checkpoint of a training run's folder.

    Raises:
      FileNotFoundError: no run, checkpoint or tokenizer there.
      ConfigError: the run trained no generator.
    """
    config = load_config(workdir)
    if config.objective == 'autoencoder':
        raise ConfigError(f'{workdir} holds an autoencoder, not a generator; give the --workdir of a generator run')
    if config.tokenizer.kind == 'identity':
        tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
    else:
        tokenizer = load_tokenizer(Path(workdir) / 'tokenizer')
    boxed = jax.eval_shape(make_objective(config, tokenizer).init, jax.random.key(0))
    everywhere = replicated(_mesh())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), nn.unbox(boxed))
    checkpoints = Checkpoints(workdir)
    params = checkpoints.restore({'ema': abstract})['ema']
    checkpoints.close()
    return Generator(config, params, tokenizer)


def _mesh() -> Mesh:
    """All devices of all hosts, along the data axis."""
    return make_mesh(MeshConfig())
