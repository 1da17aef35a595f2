"""A few captioned videos, built in a moment."""

import pytest

from magi_jax.config import DataConfig
from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.data.builders import captions

NAME = 'bouncing_objects/captions'


def build(folder, **counts):
    """Build the dataset under `folder` with so many videos a split; return its config."""
    with pytest.MonkeyPatch.context() as patch:
        (config,) = (config for config in bouncing.BouncingObjects.BUILDER_CONFIGS if config.name == captions.KIND)
        patch.setattr(config, 'counts', counts)
        bouncing.prepare(NAME, str(folder))
    return DataConfig(
        source=NAME, path=str(folder), frames=5, max_interval=3, batch_size=4, flip_horizontal=False, threads=0
    )
