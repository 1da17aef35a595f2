"""FLOPs of the model by arithmetic, to compare compiled programs with. A multiply-add counts as two.

Only matrix products count. Rematerialisation and the tokenizer are left out.
Dimension key: B clips, T frames, N tokens of a frame, C token width, D width, W head width.
"""

from magi_jax.config import Config, HeadConfig, ModelConfig
from magi_jax.models.api import VideoModel, make_model
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.diffusion_head import TIMESTEP_CHANNELS

BACKWARD = 2  # FLOPs of the backward pass / forward pass: gradients of inputs and of weights


def train_flops(config: Config, shape: ClipShape) -> dict[str, float]:
    """Return FLOPs of one clip, forward and backward, by component of the trunk, and 'head'.

    The head sees every token of the target frames `head.repeats` times.
    """
    model = make_model(config, shape)
    forward = model.training_flops()
    tokens = target_frames(config, model) * shape.tokens
    forward['head'] = tokens * config.model.head.repeats * head_flops(config.model, shape.token_width)
    return {name: (1 + BACKWARD) * count for name, count in forward.items()}


def target_frames(config: Config, model: VideoModel) -> int:
    """Return the number of frames of a clip that the head evaluates in training.

    A single target frame is cut out only if devices share sites: no device then holds all of it.
    """
    return 1 if config.masking.target_frames == 'one' and model.sharded == 'sites' else model.shape.frames


def frame_flops(config: Config, shape: ClipShape, slots: int) -> dict[str, float]:
    """Return FLOPs of one sampled frame of one clip, by component.

    A frame takes K mask passes and one commit pass against `slots` cached frames. The head runs `denoise_steps` times
    on each of the N tokens. Guidance away from history adds a mask pass without cached frames to each mask pass,
    guidance away from text doubles all passes; both double the head.
    """
    model, sampler = make_model(config, shape), config.sampler
    passes, guided = min(sampler.mask_steps, shape.tokens), config.is_guided
    seeing, flops = model.frame_flops(slots), {}
    weak, weak_passes = (model.frame_flops(0), passes) if model.guided_away_from == 'history' else (seeing, passes + 1)
    for name in seeing:
        flops[name] = (passes + 1) * seeing[name] + guided * weak_passes * weak[name]
    head = sampler.denoise_steps * shape.tokens * head_flops(config.model, shape.token_width)
    return flops | {'head': (1 + guided) * head}


def head_flops(model: ModelConfig, token_width: int) -> float:
    """Return FLOPs of one evaluation of the diffusion head on one token."""
    head: HeadConfig = model.head
    width = head.width
    inputs = token_width * width + model.width * width + TIMESTEP_CHANNELS * width + width * width
    blocks = head.blocks * 5 * width * width  # modulation to 3W, and two layers
    final = 2 * width * width + 2 * width * token_width
    return 2.0 * (inputs + blocks + final + (model.width * token_width if head.readout else 0))
