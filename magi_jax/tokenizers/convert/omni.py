"""Names of OmniTokenizer's weights: those of its own code."""

from magi_jax.tokenizers.convert.key_map import Layout

DROPPED = (
    (r'(image_discriminator|video_discriminator|perceptual_model)\.', 'losses of its training'),
    (r'codebook\.', 'codebook of the variant without a Gaussian'),
    (r'.*\.(context_norm|spatial_rel_pos_bias)\.', 'never used'),
    (r'.*\.relative_position_index$', 'constant'),
)
LAYOUT = Layout('OmniTokenizer', lambda name: name, DROPPED)
