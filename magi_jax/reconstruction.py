"""Videos after the tokenizer alone, computed in parts by the devices of all hosts.

Dimension key: B clips, T frames, H W pixels.
"""

import jax
import numpy as np
from jax.sharding import Mesh

from magi_jax.config import MeshConfig
from magi_jax.parallel.hosts import equal_batches, gather_to_hosts, padded_rows, replicate, shard
from magi_jax.parallel.mesh import batch_sharding, make_mesh
from magi_jax.sampling.arguments import check_videos, check_whole
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.pixels import to_float, to_uint8


def reconstruct(tokenizer: Tokenizer, video: np.ndarray, per_device_batch: int | None = None) -> np.ndarray:
    """Encode and decode videos.

    Args:
      tokenizer: the tokenizer.
      video: uint8 [B, T, H, W, 3].
      per_device_batch: as in `rows_of_parts`.

    Returns:
      uint8 [B, T, H, W, 3] on every host.
    """
    mesh, video = all_devices(), check_videos('video', video)
    tokenizer, sharding = replicate(mesh, tokenizer), batch_sharding(mesh)
    parts = (shard(sharding, video[rows]) for rows in rows_of_parts(mesh, len(video), per_device_batch))
    return np.concatenate([gather_to_hosts(_reconstruct(tokenizer, part)) for part in parts])[: len(video)]


def rows_of_parts(mesh: Mesh, count: int, per_device_batch: int | None) -> list[np.ndarray]:
    """Return the rows of each part of `count` clips, so that every device gets the same number of clips.

    Args:
      mesh: mesh of the devices.
      count: number of clips.
      per_device_batch: number of clips per device and part; None: all clips in one part.
    """
    if per_device_batch is None:
        return [padded_rows(mesh, count)]
    return equal_batches(mesh, count, check_whole('per_device_batch', per_device_batch, 1))


def all_devices() -> Mesh:
    """Return a mesh of all devices of all hosts along the data axis."""
    return make_mesh(MeshConfig())


@jax.jit
def _reconstruct(tokenizer: Tokenizer, video: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.encode(to_float(video))))
