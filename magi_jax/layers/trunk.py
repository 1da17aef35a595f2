"""A stack of equal transformer blocks, scanned over depth, and what its backward pass recomputes.

Dimension key: L blocks, B clips, R rows (frames in the sequence), N sites, D width; r, n: the local part of R, N on one
device.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from magi_jax.config import ModelConfig, Remat
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.linear import MATRICES, PRODUCT
from magi_jax.layers.self_attention import DENOMINATOR, OUTPUT

Array = jax.Array
policies = jax.checkpoint_policies
KeysValues = tuple[Array, Array]

SUBLAYER, BLOCK_INPUT = 'sublayer', 'block_input'  # checkpoint names that the remat policies use
# Config train.remat -> what the forward pass keeps for the backward pass, from most memory to least. The backward pass
# gathers sharded weights again. Only 'none' (no rematerialisation) keeps the gathered weights.
POLICIES = {
    'dots': policies.save_only_these_names(PRODUCT, OUTPUT, DENOMINATOR),  # products with weights; spatial attention
    'named': policies.save_only_these_names(SUBLAYER, DENOMINATOR),  # what the sublayers add to the residual stream
    'block': policies.save_only_these_names(DENOMINATOR),  # the input of each block
    'offload': policies.save_and_offload_only_these_names(  # the input of each block, in host memory
        names_which_can_be_saved=[DENOMINATOR],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src='device',
        offload_dst='pinned_host',
    ),
}


class Trunk(nn.Module):
    """A stack of `config.blocks` blocks under one `nn.scan`.

    Parameters are stacked [L, ...]. The compiled loop body holds `unroll` blocks.

    Attributes:
      block: class of a block, `block(config, dtype, layout)(x, number, *inputs) -> (x, keys and values)`.
      config: sizes of the model.
      dtype: dtype of matrix products.
      remat: what the backward pass recomputes.
      unroll: blocks in one iteration of the loop over depth.
      layout: sharding of frames and sites.
    """

    block: type[nn.Module]
    config: ModelConfig
    dtype: Any
    remat: Remat = 'none'
    unroll: int = 1
    layout: Layout = SINGLE_DEVICE

    @nn.compact
    def __call__(self, x: Array, *inputs: Any) -> tuple[Array, KeysValues]:
        """Apply all blocks to x; each gets the same further `inputs`, documented with the block.

        Returned keys and values are stacked over depth: [L, B, R, n, D].
        """
        body = self.block
        if self.layout is not SINGLE_DEVICE:
            body = nn.map_variables(body, 'params', trans_in_fn=self._gather, mutable=False)
        if self.remat != 'none':
            # Without a loop, common-subexpression elimination would undo rematerialisation.
            unrolled = self.unroll >= self.config.blocks
            body = nn.remat(body, prevent_cse=unrolled, policy=POLICIES[self.remat])
        stack = nn.scan(
            body,
            variable_axes={'params': 0, MATRICES: 0, 'intermediates': 0},  # intermediates: only where a caller captures
            split_rngs={'params': True},
            in_axes=(0, *(nn.broadcast for _ in inputs)),
            length=self.config.blocks,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        blocks = stack(self.config, self.dtype, self.layout, name='blocks')
        return blocks(x, jnp.arange(self.config.blocks), *inputs)

    def _gather(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {'params': self.layout.gather_block(variables['params'])}
