"""The training state, born sharded: shapes first, then shardings, then memory."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from magi_jax.objectives.api import Objective, abstract_params
from magi_jax.parallel.mesh import replicated_sharding
from magi_jax.parallel.rules import optimizer_shardings, parameter_shardings


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds and a step replaces.

    Attributes:
      step: int32, optimizer steps taken.
      params: float32 parameters.
      opt_state: of the optimizer.
      ema: exponential moving average of params, same tree: what sampling and evaluation use.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any

    def items(self) -> dict[str, Any]:
        """The named trees of a checkpoint: the average apart, since sampling reads nothing else."""
        return {'ema': self.ema, 'training': {'step': self.step, 'params': self.params, 'opt_state': self.opt_state}}

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> 'TrainState':
        """The inverse of `items`."""
        return cls(**items['training'], ema=items['ema'])


@dataclasses.dataclass(frozen=True)
class StateFactory:
    """Makes the state of an objective on a mesh."""

    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state, every array created on the devices that keep it."""
        return jax.jit(self._init, out_shardings=self.shardings())(key)

    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without memory: what a checkpoint is restored into."""
        shapes = jax.eval_shape(self._fresh, nn.unbox(abstract_params(self.objective)))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings(),
        )

    def shardings(self) -> TrainState:
        """A NamedSharding for every leaf; optimizer moments and the average lie as `moment_shardings` says."""
        boxed = abstract_params(self.objective)
        average, moments = optimizer_shardings(self.mesh, boxed), jax.eval_shape(self.optimizer.init, nn.unbox(boxed))
        by_path, everywhere = jax.tree_util.tree_leaves_with_path(average), replicated_sharding(self.mesh)

        def of_moment(path: tuple, _: jax.ShapeDtypeStruct) -> NamedSharding:
            """A moment's path ends in its parameter's; a counter's in no parameter's."""
            return next((sharding for end, sharding in by_path if path[-len(end) :] == end), everywhere)

        opt_state = jax.tree_util.tree_map_with_path(of_moment, moments)
        return TrainState(everywhere, parameter_shardings(self.mesh, boxed), opt_state, average)

    def _init(self, key: jax.Array) -> TrainState:
        return self._fresh(nn.unbox(self.objective.init(key)))

    def _fresh(self, params: Any) -> TrainState:
        # A copy: the step donates the state, and one buffer cannot be donated twice.
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), jax.tree.map(jnp.copy, params))
