"""Linear layer, GELU and LayerNorm as every network here uses them: float32 parameters with logical axis names.

Dimension key: ... any leading axes, D width.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

LAYER_NORM_EPS = 1e-6
MATRICES = 'matrices'  # collection of kernels that `prepare` made
PRODUCT = 'product'  # checkpoint name of outputs


def xavier_uniform(features: int) -> nn.initializers.Initializer:
    """Xavier-uniform for a kernel [D, *features] with so many feature axes; a fused kernel is initialised as one."""
    return nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=range(1, features + 1))


class Linear(nn.Module):
    """x @ kernel + bias over the last axis.

    The leading axes are merged first: with several of them, XLA's CPU backend transposes both factors of the weight
    gradient in memory, which made the backward pass of an MLP three times slower. On accelerators it changes nothing.

    Attributes:
      features: F of the output, or (number of outputs, F).
      axes: logical names of the kernel's axes, input first.
      dtype: of the product.
      kernel_init: xavier-uniform unless told otherwise (MAR); the bias starts at zero.
      then: applied to the product [..., F] before the bias is added.
    """

    features: int | tuple[int, int]
    axes: tuple[str | None, ...]
    dtype: Any
    kernel_init: nn.initializers.Initializer | None = None
    then: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """[..., D] -> [..., F]; with `features` (3, F) three of them, from one fused kernel.

        The products of a fused kernel stay apart: cut from one product, each would be copied on a TPU.
        """
        features = (self.features,) if isinstance(self.features, int) else self.features
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        matrices = self._matrices((x.shape[-1], *features))
        bias = self.param('bias', bias_init, features).astype(self.dtype)
        if len(features) == 1:
            return self._product(x, matrices[0], bias)
        return tuple(self._product(x, matrix, bias[index]) for index, matrix in enumerate(matrices))

    def _matrices(self, shape: tuple[int, ...]) -> list[jax.Array]:
        """The kernel in the dtype of the product, [D, F] for each output."""
        if self.has_variable(MATRICES, 'kernel'):
            return list(self.get_variable(MATRICES, 'kernel'))
        kernel_init = self.kernel_init or xavier_uniform(len(shape) - 1)
        kernel = self.param('kernel', nn.with_logical_partitioning(kernel_init, self.axes), shape).astype(self.dtype)
        return [kernel] if len(shape) == 2 else [kernel[:, index] for index in range(shape[1])]

    def _product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        # On the merged product the bias would keep a TPU from writing it as it is needed.
        y = y.reshape(*x.shape[:-1], -1)
        if self.then is not None:
            y = self.then(y)
        y = y + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))
        return checkpoint_name(y, PRODUCT)


def prepare(params: dict[str, Any], stacked: str, dtype: Any) -> dict[str, Any]:
    """Parameters -> variables for many passes, with the kernels as products take them: cast, a matrix for each output.

    Cutting [D, 3, D] kernels in every pass was a sixth of a sampled frame: the cuts lie otherwise on a TPU.

    Args:
      params: of a network.
      stacked: parameters below this name have an axis of layers in front.
      dtype: of the products.
    """
    kept, matrices = {}, {}
    for path, leaf in flatten_dict(params).items():
        if path[-1] == 'kernel':
            inputs = int(stacked in path)  # axis of the inputs
            outputs = leaf.astype(dtype).reshape(*leaf.shape[: inputs + 1], -1, leaf.shape[-1])
            matrices[path] = jnp.moveaxis(outputs, inputs + 1, inputs)
        else:
            kept[path] = leaf
    return {'params': unflatten_dict(kept), MATRICES: unflatten_dict(matrices)}


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's function of x: the exact GELU, any shape.

    By erf, where jax.nn.gelu takes erfc: exact to float32's rounding next to 1, not to 0, but one polynomial instead of
    two with an exponential. Its slope is computed again in the backward pass: the parts would fill more memory than x.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def layer_norm(name: str, affine: bool = True) -> nn.LayerNorm:
    """LayerNorm over the last axis, always in float32."""
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPS,
        dtype=jnp.float32,
        use_bias=affine,
        use_scale=affine,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('norm',)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('norm',)),
        name=name,
    )
