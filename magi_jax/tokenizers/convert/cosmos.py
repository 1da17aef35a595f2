"""Names of the Cosmos video tokenizer weights, in diffusers and in NVIDIA's TorchScript files."""

import re

from magi_jax.tokenizers.convert.key_map import Layout, substitute
from magi_jax.tokenizers.convert.ldm import finest_first

ORIGINAL = (
    (r'\.down_blocks\.(\d+)\.resnets\.', r'.down.\1.block.'),
    (r'\.down_blocks\.(\d+)\.downsamplers\.0\.', r'.down.\1.downsample.'),
    (r'\.up\.(\d+)\.resnets\.', r'.up.\1.block.'),
    (r'\.up\.(\d+)\.upsamplers\.0\.', r'.up.\1.upsample.'),
    (r'\.mid_block\.resnets\.0\.', '.mid.block_1.'),
    (r'\.mid_block\.resnets\.1\.', '.mid.block_2.'),
    (r'\.mid_block\.attentions\.0\.', '.mid.attn_1.0.'),
    (r'\.mid_block\.temp_attentions\.0\.', '.mid.attn_1.1.'),
    (r'\.conv_s\.', '.0.'),
    (r'\.conv_t\.', '.1.'),
    (r'\.conv_shortcut\.', '.nin_shortcut.'),
    (r'\.to_([qkv])\.', r'.\1.'),
    (r'\.to_out\.0\.', '.proj_out.'),
)
DROPPED = (
    (r'(encoder\.patcher3d|decoder\.unpatcher3d)\.', 'constants of the wavelets'),
    (r'(encoder\.down|decoder\.up)\.\d+\.(downsample|upsample)\.', 'resampling that never runs'),
)


def layouts(levels: int) -> tuple[Layout, ...]:
    """Return both layouts of a tokenizer with `levels` decoder levels.

    The original code counts the levels from the finest.
    """

    def original(name: str) -> str:
        name = substitute(finest_first(name, levels), ORIGINAL)
        return name if '.norm' in name else re.sub(r'\.(weight|bias)$', r'.conv3d.\1', name)

    return Layout('diffusers', lambda name: name), Layout('NVIDIA', original, DROPPED)
