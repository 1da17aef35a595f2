"""The training state, created sharded: shapes first, then shardings, then memory."""

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
    """The content of a checkpoint, which each step replaces.

    Attributes:
      step: number of optimizer steps taken, int32.
      params: float32 parameters.
      opt_state: optimizer state.
      ema: exponential moving average of params in the same tree, used by sampling and evaluation.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any

    def items(self) -> dict[str, Any]:
        """Return the named trees of a checkpoint. EMA parameters are separate: sampling reads nothing else."""
        return {'ema': self.ema, 'training': {'step': self.step, 'params': self.params, 'opt_state': self.opt_state}}

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> 'TrainState':
        """Build the state from the trees that `items` returned."""
        return cls(**items['training'], ema=items['ema'])


@dataclasses.dataclass(frozen=True)
class StateFactory:
    """Creates the state of an objective on a mesh."""

    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh

    def init(self, key: jax.Array) -> TrainState:
        """Create a fresh state; every array is created on its own devices."""
        return jax.jit(self._init, out_shardings=self.shardings())(key)

    def restart(self, params: Any, ema: Any) -> TrainState:
        """Create the state at step 0 with these parameters, sharded as in `shardings`, and a fresh optimizer state."""
        shardings = self.shardings()
        opt_state = jax.jit(self.optimizer.init, out_shardings=shardings.opt_state)(params)
        step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
        return TrainState(step, params, opt_state, ema)

    def abstract(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, as needed to restore a checkpoint."""
        shapes = jax.eval_shape(self._fresh, nn.unbox(abstract_params(self.objective)))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings(),
        )

    def shardings(self) -> TrainState:
        """Return a NamedSharding for every leaf. `optimizer_shardings` decides those of Adam moments and EMA."""
        boxed = abstract_params(self.objective)
        ema, moments = optimizer_shardings(self.mesh, boxed), jax.eval_shape(self.optimizer.init, nn.unbox(boxed))
        by_path, replicated = jax.tree_util.tree_leaves_with_path(ema), replicated_sharding(self.mesh)

        def of_moment(path: tuple, _: jax.ShapeDtypeStruct) -> NamedSharding:
            """Find the parameter whose path ends the path of this leaf; counters have none and are replicated."""
            return next((sharding for end, sharding in by_path if path[-len(end) :] == end), replicated)

        opt_state = jax.tree_util.tree_map_with_path(of_moment, moments)
        return TrainState(replicated, parameter_shardings(self.mesh, boxed), opt_state, ema)

    def _init(self, key: jax.Array) -> TrainState:
        return self._fresh(nn.unbox(self.objective.init(key)))

    def _fresh(self, params: Any) -> TrainState:
        # EMA is a copy: the step donates the state, and a buffer cannot be donated twice.
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), jax.tree.map(jnp.copy, params))
