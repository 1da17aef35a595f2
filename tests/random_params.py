import jax
import numpy as np
from flax import linen as nn


def random_params(init, scale=0.3, seed=0):
    """Parameters shaped as those of `init(key)`: kernels normal with xavier's variance, all else 0 or 1 +- `scale`.

    Nothing is compiled to draw them, and nothing starts at zero: what a zero would hide shows.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == 'kernel':
            fans = (leaf.shape[-3], 3 * leaf.shape[-1]) if path[-2].key == 'qkv' and leaf.ndim > 2 else leaf.shape[-2:]
            return noise * np.float32((2 / sum(fans)) ** 0.5)
        return np.float32(path[-1].key == 'scale') + np.float32(scale) * noise

    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.device_put(jax.tree.map_with_path(draw, shapes))
