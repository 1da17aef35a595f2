import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiHeadConfig
from magi_jax.diffusion.schedule import respaced_process
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.sampling.token_denoiser import MAX_MEMORY_BOUND_ROWS, token_denoiser
from tests.random_params import random_params

TOKEN, WIDTH = 3, 13
PROCESS = respaced_process(1000, 7, 900)


@pytest.mark.parametrize('rows', [5, MAX_MEMORY_BOUND_ROWS])
@pytest.mark.parametrize('readout', [True, False])
def test_it_is_the_head_at_every_step(rows, readout):
    """With few rows and with many: two clips of them."""
    head = DiffusionHead(MagiHeadConfig(width=20, blocks=2, readout=readout), TOKEN, jnp.float32)
    rng = np.random.default_rng(0)
    x, z = (np.float32(rng.normal(size=(2, rows, width))) for width in (TOKEN, WIDTH))
    params = random_params(lambda key: head.init(key, x, np.zeros((1, 1), int), z)['params'])

    @jax.jit
    def both(step):
        t = jnp.full((1, 1), PROCESS.timestep[step])
        return token_denoiser(head, params, PROCESS, z)(x, t), head.apply({'params': params}, x, t, z)

    for step in (0, 3, 6):
        np.testing.assert_allclose(*both(step), atol=1e-5)
