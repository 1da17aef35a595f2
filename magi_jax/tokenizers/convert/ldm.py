"""Names of the latent diffusion autoencoder weights: diffusers, old diffusers, and the original code."""

from magi_jax.tokenizers.convert.key_map import Layout, substitute

# Attention in files of diffusers before 0.18, such as Stable Diffusion 1.4.
LEGACY_ATTENTION = (
    (r'\.to_q\.', '.query.'),
    (r'\.to_k\.', '.key.'),
    (r'\.to_v\.', '.value.'),
    (r'\.to_out\.0\.', '.proj_attn.'),
)
ORIGINAL = (
    (r'\.down_blocks\.(\d+)\.resnets\.', r'.down.\1.block.'),
    (r'\.down_blocks\.(\d+)\.attentions\.', r'.down.\1.attn.'),
    (r'\.down_blocks\.(\d+)\.downsamplers\.0\.', r'.down.\1.downsample.'),
    (r'\.up\.(\d+)\.resnets\.', r'.up.\1.block.'),
    (r'\.up\.(\d+)\.upsamplers\.0\.', r'.up.\1.upsample.'),
    (r'\.mid_block\.resnets\.0\.', '.mid.block_1.'),
    (r'\.mid_block\.resnets\.1\.', '.mid.block_2.'),
    (r'\.mid_block\.attentions\.0\.', '.mid.attn_1.'),
    (r'\.conv_norm_out\.', '.norm_out.'),
    (r'\.conv_shortcut\.', '.nin_shortcut.'),
    (r'\.group_norm\.', '.norm.'),
    (r'\.to_([qkv])\.', r'.\1.'),
    (r'\.to_out\.0\.', '.proj_out.'),
)
LOSS = (r'loss\.', 'discriminator and perceptual loss of its training')


def layouts(levels: int) -> tuple[Layout, ...]:
    """Return all layouts of an autoencoder with `levels` levels.

    The original code counts the levels of the decoder from the finest.
    """

    def original(name: str) -> str:
        return substitute(finest_first(name, levels), ORIGINAL)

    whole = ((r'(?!first_stage_model\.)', 'not of the autoencoder'), (r'first_stage_model\.loss\.', LOSS[1]))
    return (
        Layout('diffusers', lambda name: name),
        Layout('older diffusers', lambda name: substitute(name, LEGACY_ATTENTION)),
        Layout('latent diffusion', original, (LOSS,)),
        Layout('single-file Stable Diffusion', lambda name: f'first_stage_model.{original(name)}', whole),
    )


def finest_first(name: str, levels: int) -> str:
    """Rename `.up_blocks.I.` to `.up.J.`, with J counted from the other end."""
    rules = [(rf'\.up_blocks\.{i}\.', f'.up.{levels - 1 - i}.') for i in range(levels)]
    return substitute(name, rules)
