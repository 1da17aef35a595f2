"""FLOPs of the model by arithmetic, to compare compiled programs with. A multiply-add counts as two.

Only matrix products count. Temporal attention counts as dense. Rematerialisation and the tokenizer are left out.
Dimension key: B clips, T frames, N tokens of a frame, S key rows, C token width, D width, W head width.
"""

from magi_jax.config import HeadConfig, ModelConfig, SamplerConfig
from magi_jax.models.diffusion_head import TIMESTEP_CHANNELS
from magi_jax.models.magi import ClipShape

BACKWARD = 2  # FLOPs of the backward pass / forward pass: gradients of inputs and of weights


def train_flops(model: ModelConfig, shape: ClipShape) -> dict[str, float]:
    """Return FLOPs of one clip, forward and backward, by component: 'spatial', 'temporal', 'embedding', 'head'.

    With complete teacher forcing, 2T frames pass the trunk. The head sees every token of the T masked frames
    `head.repeats` times.
    """
    rows = shape.frames * (2 if model.teacher_forcing == 'complete' else 1)
    forward = _trunk_flops(model, shape, rows, rows)
    forward['head'] = shape.frames * shape.tokens * model.head.repeats * head_flops(model, shape.token_width)
    return {name: (1 + BACKWARD) * count for name, count in forward.items()}


def frame_flops(model: ModelConfig, sampler: SamplerConfig, shape: ClipShape, slots: int) -> dict[str, float]:
    """Return FLOPs of one sampled frame of one clip, by component.

    A frame takes K mask passes and one commit pass against `slots` cached frames. The head runs `denoise_steps` times
    on each of the N tokens. Guidance adds a mask pass without cached frames to each mask pass and doubles the head.
    """
    passes, guided = min(sampler.mask_steps, shape.tokens), sampler.guidance != 1
    seeing, blind = (_trunk_flops(model, shape, 1, rows) for rows in (slots + 1, 1))
    flops = {name: (passes + 1) * seeing[name] + guided * passes * blind[name] for name in seeing}
    head = sampler.denoise_steps * shape.tokens * head_flops(model, shape.token_width)
    return flops | {'head': (1 + guided) * head}


def head_flops(model: ModelConfig, token_width: int) -> float:
    """Return FLOPs of one evaluation of the diffusion head on one token."""
    head: HeadConfig = model.head
    width = head.width
    inputs = token_width * width + model.width * width + TIMESTEP_CHANNELS * width + width * width
    blocks = head.blocks * 5 * width * width  # modulation to 3W, and two layers
    final = 2 * width * width + 2 * width * token_width
    return 2.0 * (inputs + blocks + final + (model.width * token_width if head.readout else 0))


def _trunk_flops(model: ModelConfig, shape: ClipShape, rows: int, key_rows: int) -> dict[str, float]:
    """Return FLOPs of a forward pass of `rows` frames, each with `key_rows` frames as temporal keys."""
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
