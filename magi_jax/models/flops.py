"""FLOPs of the model by arithmetic: what a compiled program is held against. A multiply-add is two.

Only matrix products count, temporal attention as dense, no recomputation; the tokenizer is not part of it.
Dimension key: B clips, T frames, N tokens of a frame, S key rows, C token width, D width, W head width.
"""

from magi_jax.config import HeadConfig, ModelConfig, SamplerConfig
from magi_jax.models.diffusion_head import TIMESTEP_CHANNELS
from magi_jax.models.magi import ClipShape

BACKWARD = 2  # times the forward pass: gradients of inputs and of weights


def train_flops(model: ModelConfig, shape: ClipShape) -> dict[str, float]:
    """One clip's forward and backward pass, by component: 'spatial', 'temporal', 'embedding', 'head'.

    All 2T frames of complete teacher forcing pass the trunk, and the head sees every token of the T masked ones,
    `head.repeats` times each.
    """
    rows = shape.frames * (2 if model.teacher_forcing == 'complete' else 1)
    forward = _trunk_flops(model, shape, rows, rows)
    forward['head'] = shape.frames * shape.tokens * model.head.repeats * head_flops(model, shape.token_width)
    return {name: (1 + BACKWARD) * count for name, count in forward.items()}


def frame_flops(model: ModelConfig, sampler: SamplerConfig, shape: ClipShape, slots: int) -> dict[str, float]:
    """One sampled frame of one clip: K mask passes and the commit pass against `slots` cached frames, by component.

    The head runs `denoise_steps` times on each of the N tokens, when it is revealed. Guidance takes each mask pass a
    second time, against no cached frames, and the head twice.
    """
    passes, guided = min(sampler.mask_steps, shape.tokens), sampler.guidance != 1
    seeing, blind = (_trunk_flops(model, shape, 1, rows) for rows in (slots + 1, 1))
    flops = {name: (passes + 1) * seeing[name] + guided * passes * blind[name] for name in seeing}
    head = sampler.denoise_steps * shape.tokens * head_flops(model, shape.token_width)
    return flops | {'head': (1 + guided) * head}


def head_flops(model: ModelConfig, token_width: int) -> float:
    """One evaluation of the diffusion head on one token."""
    head: HeadConfig = model.head
    width = head.width
    inputs = token_width * width + model.width * width + TIMESTEP_CHANNELS * width + width * width
    blocks = head.blocks * 5 * width * width  # modulation to 3W, and two layers
    final = 2 * width * width + 2 * width * token_width
    return 2.0 * (inputs + blocks + final + (model.width * token_width if head.readout else 0))


def _trunk_flops(model: ModelConfig, shape: ClipShape, rows: int, key_rows: int) -> dict[str, float]:
    """Forward pass of `rows` frames of one clip, each seeing `key_rows` frames in the temporal layers."""
    width, sites = model.width, shape.tokens + (model.noise_embedding == 'concat_token')
    projections, mlp = 8 * width * width, 4 * width * model.mlp_width
    spatial = projections + 4 * sites * width + (mlp if model.mlp_layers == 'both' else 0)
    temporal = projections + 4 * key_rows * width + mlp
    embedding = 2 * shape.token_width * width
    if model.noise_embedding == 'concat_channel':
        embedding += 4 * width * width
    return {
        'spatial': float(rows * sites * model.blocks * spatial),
        'temporal': float(rows * sites * model.blocks * temporal),
        'embedding': float(rows * shape.tokens * embedding),
    }
