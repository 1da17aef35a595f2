"""Shared weights in the PyTorch reference."""

import os

from magi_jax.benchmarks.torch_model import Magi
from magi_jax.objectives.api import clip_shape
from magi_jax.pretrained.folder import read_pretrained
from magi_jax.pretrained.hub import find_folder


def load_pretrained(name: str | os.PathLike) -> Magi:
    """Return the PyTorch model with the weights of a `save_pretrained` folder, or of a Hub repository.

    Raises:
      ConfigError: as `read_pretrained`.
    """
    config, tokenizer, params, _ = read_pretrained(find_folder(name))
    return Magi(config, clip_shape(config, tokenizer)).load_params(params)
