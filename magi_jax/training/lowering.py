"""The programs that training and sampling run, traced from shapes alone: no array is made and no device has to exist.

Dimension key: B clips, T frames, H W pixels, N tokens of a frame, C token width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from magi_jax.config import Config
from magi_jax.objectives.api import make_objective
from magi_jax.parallel.mesh import batch_sharding, check_batch, replicated
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import make_train_step


def abstract_tokenizer(config: Config) -> Tokenizer | None:
    """A tokenizer of shapes as `config.tokenizer` describes it; None for an autoencoder run, which has none."""
    if config.objective == 'autoencoder':
        return None
    data = config.data
    return jax.eval_shape(lambda key: create_tokenizer(config.tokenizer, key, data.height, data.width), _key())


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch on `mesh`: video uint8 [B, T, H, W, 3], interval and example int32 [B]."""
    data, sharding = config.data, batch_sharding(mesh)
    rows = {
        'video': jax.ShapeDtypeStruct((data.batch_size, data.frames, data.height, data.width, 3), jnp.uint8),
        'interval': jax.ShapeDtypeStruct((data.batch_size,), jnp.int32),
        'example': jax.ShapeDtypeStruct((data.batch_size,), jnp.int32),
    }
    return place(rows, sharding)


def trace_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Traced:
    """The optimizer step as jit sees it, (state, tokenizer, batch) -> (state, metrics); the state is donated.

    Args:
      config: of the run.
      mesh: of devices that exist or not.
      tokenizer: the run's own, or `abstract_tokenizer`; only its shapes are read.

    Raises:
      ConfigError: batch, model and mesh do not fit.
    """
    check_batch(mesh, config.data.batch_size, config.optim.accumulate)
    objective, optimizer = make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps)
    state = StateFactory(objective, optimizer, mesh).abstract()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        make_train_step(objective, optimizer, config), donate_argnums=0, out_shardings=(shardings, replicated(mesh))
    )
    return step.trace(state, place(tokenizer, replicated(mesh)), abstract_batch(config, mesh))


def lower_train_step(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> jax.stages.Lowered:
    """`trace_train_step`, lowered for the mesh's devices: `.compile()` makes the very program that training runs."""
    return trace_train_step(config, mesh, tokenizer).lower()


def place(tree: Any, sharding: Sharding) -> Any:
    """Arrays or their shapes -> shapes that lie on `sharding`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
