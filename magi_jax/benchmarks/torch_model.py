"""The PyTorch reference of MAGI: trunk, diffusion head and diffusion process in one module."""

import torch
from torch import Tensor, nn

from magi_jax.benchmarks.torch_diffusion import Diffusion
from magi_jax.benchmarks.torch_head import DiffusionHead, ResidualBlock
from magi_jax.benchmarks.torch_trunk import Trunk
from magi_jax.benchmarks.weights import to_state_dict
from magi_jax.config import MagiConfig
from magi_jax.models.clip_shape import ClipShape


class Magi(nn.Module):
    """The trained modules `trunk` and `head`, and the parameter-free diffusion process of training, `diffusion`.

    Attributes:
      config: of the experiment; everything in `config.model` is honoured.
      shape: sizes of the trained clips.
    """

    def __init__(self, config: MagiConfig, shape: ClipShape):
        super().__init__()
        self.config, self.shape = config, shape
        head = config.model.head
        self.trunk = Trunk(config, shape)
        self.head = DiffusionHead(head, shape.token_width, config.model.width)
        self.diffusion = Diffusion.full(head.prediction, head.timesteps)
        self.register_buffer('noise_std', torch.tensor(config.masking.noise_std), persistent=False)
        _initialise(self)

    def load_params(self, params: dict) -> 'Magi':
        """Load the parameters {'trunk', 'head'} of the JAX model; return self.

        Raises:
          ConfigError: a parameter is missing, unexpected or of another shape.
        """
        arrays = to_state_dict(params, self.state_dict())
        self.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        return self


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return the autocast context for `config.train.compute_dtype`: bfloat16 matrix products, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == 'bfloat16')


@torch.no_grad()
def _initialise(model: Magi) -> None:
    """Initialise as MAR: Xavier-uniform, tables N(0, 0.02), modulations and outputs of the head zero."""
    head = model.head
    zero = [head.final_modulation, head.final, head.readout]
    zero += [module.modulation for module in model.modules() if isinstance(module, ResidualBlock)]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if module in zero:
                nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            _small(module.weight)
    for weight in (head.time_in.weight, head.time_out.weight):
        _small(weight)
    for name, table in model.trunk.named_parameters(recurse=False):
        assert name.endswith(('_table', 'mask_token')), name
        _small(table)


def _small(weight: Tensor) -> None:
    nn.init.normal_(weight, std=0.02)
