"""The interface of an objective, and the table of objectives."""

import functools
from typing import Any, Protocol

import jax

from magi_jax.config import Config, ConfigError
from magi_jax.layers.layout import Layout
from magi_jax.models.api import VideoModel
from magi_jax.models.clip_shape import ClipShape
from magi_jax.objectives.autoencoder import make_autoencoder_objective
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.tokenizers.api import Tokenizer


class Objective(Protocol):
    """A pure loss and the parameters it trains. Objectives are dataclasses, so that the trainer can replace the layout.

    Attributes:
      layout: sharding of the clips. `loss` is computed by each device and has equal results on all of them.
      trunk: the video model that is trained, or None.
    """

    layout: Layout

    @property
    def trunk(self) -> VideoModel | None: ...

    def init(self, key: jax.Array) -> Any:
        """Return fresh float32 parameters, boxed with logical axis names where they can be sharded."""

    def loss(
        self, params: Any, tokenizer: Tokenizer | None, batch: dict[str, jax.Array], key: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return (scalar loss, scalar metrics including 'loss') of the global batch."""


@functools.lru_cache(maxsize=16)
def abstract_params(objective: Objective) -> Any:
    """Return shapes and logical axes of `objective.init`. Cached, because a command calls it eight times."""
    return jax.eval_shape(objective.init, jax.random.key(0))


def clip_shape(config: Config, tokenizer: Tokenizer) -> ClipShape:
    """Return the sizes that a generator is built for.

    Raises:
      ConfigError: the tokenizer cannot encode the frames, latents do not divide into patches, or width into heads.
    """
    frames, height, width, channels = tokenizer.latent_shape(config.data.frames, config.data.height, config.data.width)
    model, patch = config.model, config.model.patch
    if config.data.context_frames:
        tokenizer.latent_shape(config.data.context_frames, config.data.height, config.data.width)
    if height % patch or width % patch:
        raise ConfigError(f'latents of {height}x{width} cannot be cut into patches of model.patch = {patch}')
    if model.width % 4 or model.width % model.heads:
        raise ConfigError(f'model.width = {model.width} must be a multiple of 4 and of model.heads = {model.heads}')
    return ClipShape(
        frames=frames,
        rows=height // patch,
        columns=width // patch,
        token_width=channels * patch * patch,
        intervals=config.data.max_interval,
        noise_levels=len(config.masking.noise_std),
    )


def make_objective(config: Config, tokenizer: Tokenizer | None) -> Objective:
    """Make the objective that `config.objective` names.

    Generators need the frozen tokenizer; the autoencoder does not.
    """
    if config.objective == 'autoencoder':
        return make_autoencoder_objective(config)
    return MaskedDiffusion(config, clip_shape(config, tokenizer))
