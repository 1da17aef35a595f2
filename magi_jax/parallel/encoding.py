"""Runs a tokenizer on all devices of this host.

R rows (clips), F frames, H W pixels, t latent frames, h w latent rows and columns, c channels.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec

from magi_jax.config import MeshConfig
from magi_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated_sharding
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.pixels import to_float


def make_encoder(tokenizer: Tokenizer, context: int) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """Return a function from clips uint8 [R, F, H, W, 3] to posterior mean and log variance [R, t, h, w, c].

    Hosts work independently. The function returns before the moments are computed; reading them blocks.

    Args:
      tokenizer: its parameters are replicated on every device.
      context: number of first frames of a clip that are encoded on their own.

    Raises:
      ValueError: raised by the returned function if R is not a multiple of the local devices.
    """
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def moments(tokenizer: Tokenizer, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tokenizer.moments(to_float(video), context)

    # shard_map, not jit alone: a device that encodes its rows in parts must take each part from its own rows.
    encode = jax.jit(jax.shard_map(moments, mesh=mesh, in_specs=(whole, rows), out_specs=rows, check_vma=False))
    tokenizer, sharding = jax.device_put(tokenizer, replicated_sharding(mesh)), batch_sharding(mesh)
    return lambda video: encode(tokenizer, jax.device_put(video, sharding))
