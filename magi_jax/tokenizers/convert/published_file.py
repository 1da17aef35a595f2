"""Converts a file of published weights to a tokenizer."""

import os

import jax
import jax.numpy as jnp

from magi_jax.config import TokenizerConfig
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.tokenizers.convert import checkpoint_files, cosmos, key_map, ldm, omni
from magi_jax.tokenizers.convert.key_map import Report
from magi_jax.tokenizers.published import PUBLISHED

LAYOUTS = {
    'sd_vae': ldm.layouts(levels=4),
    'kl16': ldm.layouts(levels=5),
    'cosmos_cv8x8x8': cosmos.layouts(levels=3),
    'cosmos_cv4x8x8': cosmos.layouts(levels=2),
    'cosmos_cv8x16x16': cosmos.layouts(levels=3),
    'omni': (omni.LAYOUT,),
}
SIDE = 64  # frame side in pixels that every kind accepts


def convert_file(config: TokenizerConfig, source: str | os.PathLike) -> tuple[Tokenizer, Report]:
    """Convert the weights in `source` to the tokenizer of `config`; return it and the key report.

    Latents are scaled as the authors document it. Otherwise mean 0 and std 1 are stored as not yet measured.

    Raises:
      OSError: the file cannot be read.
      ConfigError: the file is damaged, or its keys do not match the architecture.
    """
    blank = jax.eval_shape(lambda key: create_tokenizer(config, key, SIDE, SIDE), jax.random.key(0))
    weights = checkpoint_files.open_weights(source)
    params, report = key_map.convert(weights, blank.params, LAYOUTS[config.kind], os.fspath(source))
    std = 1.0 / (PUBLISHED[config.kind].scale or 1.0)
    mean, std = jnp.zeros(config.channels), jnp.full(config.channels, std)
    return Tokenizer(jax.tree.map(jnp.asarray, params), mean, std, blank.config), report
