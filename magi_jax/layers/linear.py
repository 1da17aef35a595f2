"""Linear layer, GELU, LayerNorm and RMSNorm of all networks here: float32 parameters with logical axis names.

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

LAYER_NORM_EPS = RMS_NORM_EPS = 1e-6
MATRICES = 'matrices'  # collection of kernels that `prepare` cast and split
PRODUCT = 'product'  # checkpoint name of the outputs


def xavier_uniform(features: int) -> nn.initializers.Initializer:
    """Return the Xavier-uniform initializer of a kernel with `features` output axes, fused ones included."""
    return nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=range(1, features + 1))


class Linear(nn.Module):
    """x @ kernel + bias over the last axis.

    Leading axes are merged first. Otherwise XLA's CPU backend transposes both factors of the weight gradient in memory,
    which made the backward pass of an MLP three times slower. Accelerators are not affected.

    Attributes:
      features: output width F, or (number of outputs, F) for a fused kernel.
      axes: logical names of the kernel axes, input first.
      dtype: dtype of the product.
      kernel_init: default Xavier-uniform (MAR); the bias starts at zero.
      then: function applied to the product [..., F] before the bias is added, or None.
      use_bias: False leaves the bias out.
    """

    features: int | tuple[int, int]
    axes: tuple[str | None, ...]
    dtype: Any
    kernel_init: nn.initializers.Initializer | None = None
    then: Callable[[jax.Array], jax.Array] | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Map [..., D] to [..., F], or to a tuple of such outputs for a fused kernel.

        A fused kernel is multiplied output by output: slices of one large product would be copied on a TPU.
        """
        features = (self.features,) if isinstance(self.features, int) else self.features
        matrices = self._matrices((x.shape[-1], *features))
        bias = self._bias(features)
        if len(features) == 1:
            return self._product(x, matrices[0], bias)
        return tuple(
            self._product(x, matrix, None if bias is None else bias[index]) for index, matrix in enumerate(matrices)
        )

    def _bias(self, features: tuple[int, ...]) -> jax.Array | None:
        if not self.use_bias:
            return None
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        return self.param('bias', bias_init, features).astype(self.dtype)

    def _matrices(self, shape: tuple[int, ...]) -> list[jax.Array]:
        """Return the kernel of each output, [D, F], in the dtype of the product."""
        if self.has_variable(MATRICES, 'kernel'):
            return list(self.get_variable(MATRICES, 'kernel'))
        kernel_init = self.kernel_init or xavier_uniform(len(shape) - 1)
        kernel = self.param('kernel', nn.with_logical_partitioning(kernel_init, self.axes), shape).astype(self.dtype)
        return [kernel] if len(shape) == 2 else [kernel[:, index] for index in range(shape[1])]

    def _product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        # The bias is added after the reshape: before it, a TPU could not write the product in its final layout.
        y = y.reshape(*x.shape[:-1], -1)
        if self.then is not None:
            y = self.then(y)
        if bias is not None:
            y = y + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))
        return checkpoint_name(y, PRODUCT)


def prepare_params(params: dict[str, Any], stacked: str, dtype: Any) -> dict[str, Any]:
    """Cast and split the kernels of a network once, for many forward passes.

    Slicing [D, 3, D] kernels in every pass took a sixth of the time of a sampled frame, because slices have another
    layout on a TPU.

    Args:
      params: parameters of a network.
      stacked: parameters below this name have a leading axis of layers.
      dtype: dtype of the products.

    Returns:
      Variables {'params': everything else, 'matrices': kernels} for `apply`.
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
    """Apply the exact GELU, x Phi(x), to an array of any shape.

    It uses erf where jax.nn.gelu uses erfc: one polynomial in place of two and an exponential, at the cost of relative
    accuracy near 0. The backward pass computes the slope again, because storing its parts takes more memory than x.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def layer_norm(name: str, affine: bool = True) -> nn.LayerNorm:
    """Return a LayerNorm over the last axis that computes in float32."""
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPS,
        dtype=jnp.float32,
        use_bias=affine,
        use_scale=affine,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('norm',)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('norm',)),
        name=name,
    )


def rms_norm(name: str) -> nn.RMSNorm:
    """Return an RMSNorm with a scale over the last axis that computes in float32."""
    return nn.RMSNorm(
        epsilon=RMS_NORM_EPS,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('norm',)),
        name=name,
    )
