"""The published tokenizers: their configs, the documented scale of their latents, source and licence."""

import dataclasses

from magi_jax.config import TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """One set of published weights.

    Attributes:
      config: config with the published width.
      parameters: number of parameters.
      scale: factor that the authors multiply latents with; None if mean and std must be measured.
      source: origin of the weights.
      licence: licence of the weights, which are not part of this repository.
    """

    config: TokenizerConfig
    parameters: int
    scale: float | None
    source: str
    licence: str


PUBLISHED = {
    'sd_vae': Published(
        TokenizerConfig(kind='sd_vae', channels=4, downsample=8, width=128),
        83_653_863,
        0.18215,
        'Stable Diffusion 1.4, vae/diffusion_pytorch_model.safetensors or the whole checkpoint',
        'CreativeML OpenRAIL-M',
    ),
    'kl16': Published(
        TokenizerConfig(kind='kl16', channels=16, downsample=16, width=128),
        66_456_019,
        0.2325,
        'MAR (LTH14/mar), kl16.ckpt',
        'MIT',
    ),
    # The authors publish statistics only for the first release of CV8x8x8, one for each latent frame: measure instead.
    'cosmos_cv8x8x8': Published(
        TokenizerConfig(kind='cosmos_cv8x8x8', channels=16, downsample=8, width=128),
        105_653_696,
        None,
        'NVIDIA Cosmos-Tokenizer-CV8x8x8, autoencoder.jit, or diffusers AutoencoderKLCosmos',
        'NVIDIA Open Model License',
    ),
    'cosmos_cv4x8x8': Published(
        TokenizerConfig(kind='cosmos_cv4x8x8', channels=16, downsample=8, width=128),
        85_783_232,
        None,
        'NVIDIA Cosmos-Tokenizer-CV4x8x8, autoencoder.jit, or diffusers AutoencoderKLCosmos',
        'NVIDIA Open Model License',
    ),
    'cosmos_cv8x16x16': Published(
        TokenizerConfig(kind='cosmos_cv8x16x16', channels=16, downsample=16, width=128),
        110_898_624,
        None,
        'NVIDIA Cosmos-Tokenizer-CV8x16x16, autoencoder.jit, or diffusers AutoencoderKLCosmos',
        'NVIDIA Open Model License',
    ),
    # The authors' diffusion code uses Stable Diffusion's 0.18215, which does not fit these latents: measure instead.
    'omni': Published(
        TokenizerConfig(kind='omni', channels=8, downsample=8, width=512),
        51_569_248,
        None,
        'OmniTokenizer (FoundationVision), the KL checkpoint of images and videos, .ckpt',
        'MIT for the code; not stated for the weights',
    ),
}
