"""Latents to tokens and back (MAGI section 3.1): square patches of latents become the tokens of a frame.

Dimension key: B clips, T frames, h w latent rows and columns, c latent channels, p patch side, N tokens of a frame (h/p
* w/p, row by row), C token width (p * p * c, ordered patch row, patch column, channel).
"""

import jax
from einops import rearrange


def patchify(latents: jax.Array, patch: int) -> jax.Array:
    """Rearrange latents [B, T, h, w, c] to tokens [B, T, N, C].

    Raises:
      ValueError: h or w is not a multiple of `patch`.
    """
    height, width = latents.shape[2:4]
    if height % patch or width % patch:
        raise ValueError(f'latents of {height}x{width} cannot be cut into patches of {patch}x{patch}')
    return rearrange(latents, 'B T (h p1) (w p2) c -> B T (h w) (p1 p2 c)', p1=patch, p2=patch)


def unpatchify(tokens: jax.Array, patch: int, height: int) -> jax.Array:
    """Rearrange tokens [B, T, N, C] to latents [B, T, h, w, c] with h = `height`: the inverse of `patchify`.

    Raises:
      ValueError: N tokens do not fill rows of patches, or C does not hold patch * patch channels.
    """
    count, width = tokens.shape[2:]
    if height % patch or count % (height // patch) or width % (patch * patch):
        raise ValueError(f'{count} tokens of width {width} are not {height} latent rows in patches of {patch}x{patch}')
    return rearrange(tokens, 'B T (h w) (p1 p2 c) -> B T (h p1) (w p2) c', h=height // patch, p1=patch, p2=patch)
