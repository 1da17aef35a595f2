"""Layouts over a mesh: how clips and parameters are sharded, and the collectives that exchange them.

Everything runs inside one `jax.shard_map` over all mesh axes, so the program contains exactly the collectives written
here. The weights of a layer are all-gathered just before their use, and their gradients are reduce-scattered just
after. Both go one mesh axis at a time: over several axes at once, the TPU compiler makes all-reduces of whole
gradients. Scattered gradients are summed over replicas once a step, after the last micro-batch. One all-to-all
exchanges frames for sites between spatial and temporal layers.

Dimension key: B clips, R rows (frames), N sites, D width; r, n: the local part of R, N on one device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from magi_jax.config import Config
from magi_jax.layers.layout import CACHED, CLIPS, COPIED, Layout
from magi_jax.models.api import make_model
from magi_jax.models.clip_shape import ClipShape
from magi_jax.objectives.api import Objective, abstract_params
from magi_jax.parallel.mesh import BATCH_AXES
from magi_jax.parallel.rules import STACKED, parameter_specs

Array = jax.Array

SEQUENCE, SPLIT = 'sequence', 'tensor'
TPU_LANES = 128
FRAME_ATTENTION = {'cpu': 'xla', 'gpu': 'cudnn', 'tpu': 'mosaic'}  # implementation of joint attention by platform
REPLICATED = (*BATCH_AXES, SEQUENCE)  # mesh axes along which parameters are replicated or sharded (FSDP)


@dataclasses.dataclass(frozen=True)
class MeshLayout(Layout):
    """A layout that shards clips over `data` and `fsdp`, frames or sites over `sequence`, heads over `tensor`."""

    mesh: Mesh = None

    def part(self, x: Array, axis: int) -> Array:
        size = -(-x.shape[axis] // self.parts)
        padding = self.parts * size - x.shape[axis]
        if padding:
            last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x] + padding * [last], axis=axis)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(SEQUENCE) * size, size, axis=axis)


@dataclasses.dataclass(frozen=True)
class TrainingLayout(MeshLayout):
    """The layout of training: spatial layers hold part of the frames, temporal layers part of the sites.

    Attributes:
      specs: PartitionSpec of every parameter, in the same tree.
      stacked: bool for every parameter: True if it belongs to the scanned blocks and is gathered inside the scan.
      dtype: dtype in which matrices are gathered and used.
    """

    specs: Any = None
    stacked: Any = None
    dtype: Any = jnp.float32

    def local_frames(self, x: Array, axis: int) -> Array:
        return self.part(x, axis)

    def unpadded_frames(self, frames: int) -> Array:
        size = -(-frames // self.parts)
        return lax.axis_index(SEQUENCE) * size + jnp.arange(size) < frames

    def to_sites(self, x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % self.parts), (0, 0)))
        return lax.all_to_all(x, SEQUENCE, split_axis=2, concat_axis=1, tiled=True)

    def to_frames(self, x: Array, sites: int) -> Array:
        return lax.all_to_all(x, SEQUENCE, split_axis=1, concat_axis=2, tiled=True)[:, :, :sites]

    def sum_over_tensor(self, x: Array) -> Array:
        return lax.psum(x, SPLIT)

    def local_split(self, x: Array, axis: int) -> Array:
        size = x.shape[axis] // self.splits
        return lax.dynamic_slice_in_dim(x, lax.axis_index(SPLIT) * size, size, axis=axis)

    def gather(self, params: Any) -> Any:
        def whole(path: Any, leaf: Array, spec: PartitionSpec, stacked: bool) -> Array:
            return leaf if stacked else self._whole(path, leaf, spec)

        return jax.tree_util.tree_map_with_path(whole, params, self.specs, self.stacked)

    def gather_block(self, params: Any) -> Any:
        specs = [spec for spec, stacked in zip(*map(jax.tree.leaves, (self.specs, self.stacked))) if stacked]
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        whole = [self._whole(path, leaf, PartitionSpec(*spec[1:])) for (path, leaf), spec in zip(leaves, specs)]
        return jax.tree.unflatten(tree, whole)

    def _whole(self, path: Any, leaf: Array, spec: PartitionSpec) -> Array:
        dtype = self.dtype if path[-1].key == 'kernel' else leaf.dtype
        pieces = tuple(
            (dimension, axis)
            for dimension, axes in enumerate(spec)
            for axis in reversed(axes if isinstance(axes, tuple) else (axes,))  # the innermost axis first
            if axis not in (None, SPLIT)
        )
        return _gather(leaf, pieces, dtype)

    def mean(self, total: Array, weight: Array) -> Array:
        for axis in REPLICATED:  # one at a time: a value that varies along some axes only cannot be summed over all
            total, weight = lax.psum((total, weight), axis)
        return total / weight

    def differentiate(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """Turn `gradient(params, tokenizer, batch, key)` of one device into the same function of global arrays.

        Each device computes gradients of its own clips. They are summed here over all replicas of a parameter.
        """

        def of_all(*inputs: Any) -> tuple[Any, Any]:
            gradients, metrics = gradient(*inputs)
            return jax.tree.map(
                lambda leaf, spec: lax.psum(leaf, _replicated_axes(spec)), gradients, self.specs
            ), metrics

        return self._over_devices(of_all, (self.specs, PartitionSpec()))

    def evaluate(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Turn `loss(params, tokenizer, batch, key)` of one device into the same function of global arrays."""
        return self._over_devices(loss, PartitionSpec())

    def _over_devices(self, function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
        def on_own_copy(params: Any, *inputs: Any) -> Any:
            own = jax.tree.map(
                lambda leaf, spec: lax.pcast(leaf, _replicated_axes(spec), to='varying'), params, self.specs
            )
            return function(own, *inputs)

        everywhere = PartitionSpec()
        in_specs = (self.specs, everywhere, PartitionSpec(BATCH_AXES), everywhere)
        return jax.shard_map(on_own_copy, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


@dataclasses.dataclass(frozen=True)
class SamplingLayout(MeshLayout):
    """The layout of sampling: every layer holds part of the sites, where the cache of these sites lies as well.

    Weights are replicated on all devices; clips are sharded as in training.

    Attributes:
      sites: number of sites N of a frame.
    """

    sites: int = 0

    def local_sites(self, x: Array, axis: int) -> Array:
        return self.part(x, axis)

    def gather_sites(self, x: Array) -> Array:
        return lax.all_gather(x, SEQUENCE, axis=2, tiled=True)[:, :, : self.sites]

    def local_size(self, count: int) -> int:
        return -(-count // self.parts)

    @property
    def specs(self) -> dict[str, PartitionSpec]:
        """PartitionSpec of each kind of array. Keys and values are [L, B, F, n, D]."""
        return {
            COPIED: PartitionSpec(),
            CLIPS: PartitionSpec(BATCH_AXES),
            CACHED: PartitionSpec(None, BATCH_AXES, None, SEQUENCE),
        }

    def over_devices(self, function: Callable, inputs: Any, outputs: Any) -> Callable:
        in_specs, out_specs = jax.tree.map(self.specs.get, (inputs, outputs))
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@dataclasses.dataclass(frozen=True)
class JointLayout(MeshLayout):
    """What training and sampling with joint attention share: devices hold sites, and exchange them for heads.

    If the heads do not divide over the devices, every device gathers all keys and values and keeps its own queries.

    Attributes:
      sites: number of sites N of a frame.
      heads: number of attention heads H of the model.
    """

    sites: int = 0
    heads: int = 1

    @property
    def by_heads(self) -> bool:
        """True if devices exchange sites for heads."""
        return self.heads // self.splits % self.parts == 0

    def local_sites(self, x: Array, axis: int) -> Array:
        return self.part(x, axis)

    def to_attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        if not self.by_heads:
            return q, self.gather_sites(k), self.gather_sites(v)
        exchange = functools.partial(lax.all_to_all, axis_name=SEQUENCE, split_axis=3, concat_axis=2, tiled=True)
        return tuple(exchange(x)[:, :, : self.sites] for x in (q, k, v))

    def from_attention(self, x: Array) -> Array:
        if not self.by_heads:
            return x
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -self.sites % self.parts), (0, 0)))
        return lax.all_to_all(x, SEQUENCE, split_axis=2, concat_axis=3, tiled=True)

    def gather_sites(self, x: Array) -> Array:
        return lax.all_gather(x, SEQUENCE, axis=2, tiled=True)[:, :, : self.sites]


@dataclasses.dataclass(frozen=True)
class JointTrainingLayout(JointLayout, TrainingLayout):
    """The layout of training with joint attention: every device embeds and predicts its sites of all frames."""

    def local_frames(self, x: Array, axis: int) -> Array:
        del axis
        return x

    def unpadded_frames(self, frames: int) -> Array:
        return jnp.ones((frames,), bool)

    def unpadded_sites(self, sites: int) -> Array:
        size = -(-sites // self.parts)
        return lax.axis_index(SEQUENCE) * size + jnp.arange(size) < sites


@dataclasses.dataclass(frozen=True)
class JointSamplingLayout(JointLayout, SamplingLayout):
    """The layout of sampling with joint attention: a device caches all sites, of its heads where they divide."""

    @property
    def specs(self) -> dict[str, PartitionSpec]:
        """PartitionSpec of each kind of array. Keys and values are [L, B, F, N, D']."""
        width = SEQUENCE if self.by_heads else None
        return super().specs | {CACHED: PartitionSpec(None, BATCH_AXES, None, None, width)}

    def cached_sizes(self, sites: int, width: int) -> tuple[int, int]:
        return sites, width // self.parts if self.by_heads else width


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(shard: Array, pieces: tuple[tuple[int, str], ...], dtype: Any) -> Array:
    """All-gather the shard of a parameter in `dtype` over each (dimension, mesh axis) in turn.

    The gradient is reduce-scattered in float32, whatever `dtype` is.
    """
    whole = shard.astype(dtype)
    for dimension, axis in pieces:
        whole = lax.all_gather(whole, axis, axis=dimension, tiled=True)
    return whole


def _gather_forward(shard: Array, pieces: tuple[tuple[int, str], ...], dtype: Any) -> tuple[Array, None]:
    return _gather(shard, pieces, dtype), None


def _gather_backward(pieces: tuple[tuple[int, str], ...], dtype: Any, _: None, gradient: Array) -> tuple[Array]:
    del dtype
    gradient = gradient.astype(jnp.float32)
    for dimension, axis in reversed(pieces):
        gradient = lax.psum_scatter(gradient, axis, scatter_dimension=dimension, tiled=True)
    return (gradient,)


_gather.defvjp(_gather_forward, _gather_backward)


def _replicated_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Return the mesh axes along which a parameter is replicated."""
    cut = [axis for axes in spec for axis in (axes if isinstance(axes, tuple) else (axes,))]
    return tuple(axis for axis in REPLICATED if axis not in cut)


def training_layout(objective: Objective, config: Config, mesh: Mesh) -> TrainingLayout:
    """Return the layout for training `objective` on `mesh`."""
    boxed, trunk = abstract_params(objective), objective.trunk
    fields: dict[str, Any] = {
        'parts': mesh.shape[SEQUENCE],
        'splits': mesh.shape[SPLIT],
        'lanes': _lanes(mesh),
        'fused': _fused(mesh),
        'frame_attention': FRAME_ATTENTION[_platform(mesh)],
        'mesh': mesh,
        'specs': parameter_specs(mesh, boxed),
        'stacked': jax.tree.map(_is_stacked, boxed, is_leaf=_is_boxed),
        'dtype': jnp.dtype(config.train.compute_dtype),
    }
    if trunk is not None and trunk.sharded == 'sites':
        return JointTrainingLayout(**fields, sites=trunk.sites, heads=config.model.heads)
    return TrainingLayout(**fields)


def sampling_layout(config: Config, shape: ClipShape, mesh: Mesh) -> SamplingLayout:
    """Return the layout for sampling from a model on `mesh`."""
    model, parts = make_model(config, shape), mesh.shape[SEQUENCE]
    fields: dict[str, Any] = {
        'parts': parts,
        'lanes': _lanes(mesh),
        'fused': _fused(mesh) and parts == 1,  # the kernels need equal numbers of queries and keys
        'frame_attention': FRAME_ATTENTION[_platform(mesh)],
        'mesh': mesh,
        'sites': model.sites,
    }
    if model.sharded == 'sites':
        return JointSamplingLayout(**fields, heads=config.model.heads)
    return SamplingLayout(**fields)


def _lanes(mesh: Mesh) -> int:
    return TPU_LANES if _platform(mesh) == 'tpu' else 1


def _fused(mesh: Mesh) -> bool:
    return _platform(mesh) == 'gpu'


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _is_stacked(leaf: Any) -> bool:
    return _is_boxed(leaf) and leaf.names[0] == STACKED
