"""MAGI's training objective: diffusion loss on the masked tokens of every frame (arXiv 2501.12389 §4, MAR).

Dimension key: B clips, T latent frames, N tokens of a frame, C token width, D width, M diffusion draws a token;
t: the local part of T on one device (all of it, unless the layout shards frames).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from magi_jax.config import Config
from magi_jax.diffusion.gaussian import add_noise, diffusion_loss
from magi_jax.diffusion.schedule import full_process
from magi_jax.layers.blocks import POLICIES
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.masking.tokens import draw_masks
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.models.magi import ClipShape, Magi
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion:
    """The objective of MAGI under complete or masked teacher forcing.

    It trains trunk and head; the tokenizer is frozen.
    """

    config: Config
    shape: ClipShape
    layout: Layout = SINGLE_DEVICE

    @property
    def trunk(self) -> Magi:
        train, dtype = self.config.train, jnp.dtype(self.config.train.compute_dtype)
        return Magi(self.config.model, self.shape, dtype, train.remat, train.unroll, self.layout)

    @property
    def head(self) -> DiffusionHead:
        dtype = jnp.dtype(self.config.train.compute_dtype)
        return DiffusionHead(self.config.model.head, self.shape.token_width, dtype)

    def init(self, key: Array) -> dict[str, Any]:
        """Return boxed float32 parameters {'trunk': ..., 'head': ...} with logical axis names."""
        trunk_key, head_key = jax.random.split(key)
        shape = self.shape
        tokens = jnp.zeros((1, shape.frames, shape.tokens, shape.token_width))
        mask, ones = jnp.ones(tokens.shape[:3], bool), jnp.ones((1,), jnp.int32)
        level = jnp.zeros((1, shape.frames), jnp.int32)
        z = jnp.zeros((1, self.config.model.width))
        return {
            'trunk': self.trunk.clone(layout=SINGLE_DEVICE).init(trunk_key, tokens, tokens, mask, ones, level)[
                'params'
            ],
            'head': self.head.init(head_key, tokens[0, 0, :1], ones, z)['params'],
        }

    def loss(
        self, params: dict[str, Any], tokenizer: Tokenizer, batch: dict[str, Array], key: Array, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss over the masked tokens of the global batch: squared error + `bound_weight` * bound.

        Random numbers are drawn for whole clips and each device keeps its frames, so results do not depend on the mesh.

        Args:
          params: unboxed parameters from `init`; on a mesh the local shards.
          tokenizer: the frozen tokenizer.
          batch: 'video' uint8 [B, T_raw, H, W, 3], or the posterior moments 'mean' and, if latents have a variance,
            'log_variance' [B, T, h, w, c]; 'interval' int32 [B]; 'example' int [B], unique in the run.
          key: key of this step. All randomness of a clip follows from (key, example), not from its row in the batch.
          train: True = with dropout.

        Returns:
          (loss, {'loss', 'mse', 'vb'}), float32 scalars.
        """
        params = self.layout.gather(params)
        # `split` first: fold_in(key, 0) equals split(key)[0], so two purposes would share random numbers.
        key, example_key = jax.random.split(key)
        clip_keys = jax.vmap(jax.random.fold_in, (None, 0))(example_key, batch['example'])
        purposes = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(clip_keys)
        clean = jax.lax.stop_gradient(patchify(self._latents(tokenizer, batch, purposes[0]), self.config.model.patch))
        dropout_keys = purposes[3] if train else None
        z, mask = self._trunk_output(params['trunk'], clean, batch['interval'], key, purposes[1], dropout_keys)
        mse, vb = self._head_loss(params['head'], clean, z, purposes[2])
        weight = mask & self.layout.unpadded_frames(self.shape.frames)[None, :, None]
        if not self.config.masking.first_frame_loss:
            weight &= (self.layout.local_frames(jnp.arange(self.shape.frames), 0) > 0)[None, :, None]
        mse, vb = (self.layout.mean(jnp.sum(x * weight), jnp.sum(weight)) for x in (mse, vb))
        loss = mse + self.config.model.head.bound_weight * vb
        return loss, {'loss': loss, 'mse': mse, 'vb': vb}

    def _latents(self, tokenizer: Tokenizer, batch: dict[str, Array], clip_keys: Array) -> Array:
        """Return normalised latents [B, t, h, w, c] of a video or its moments; both draw the same posterior noise."""
        own, video = self.layout.local_frames, batch.get('video')
        shape = batch['mean'].shape[1:] if video is None else tokenizer.latent_shape(*video.shape[1:4])
        noise = _normal(clip_keys, shape) if self.config.masking.posterior_noise else None
        if video is None or tokenizer.frame_wise:
            noise = None if noise is None else own(noise, 1)
        if video is None:
            mean, log_variance = (own(batch[name], 1) if name in batch else None for name in ('mean', 'log_variance'))
            return tokenizer.normalize(mean, log_variance, noise)
        if tokenizer.frame_wise:
            return tokenizer.encode(to_float(own(video, 1)), noise)
        # A latent frame depends on many frames: every device encodes the whole clip and keeps its part.
        return own(tokenizer.encode(to_float(video), noise, self.config.data.context_frames), 1)

    def _trunk_output(
        self, params: Any, clean: Array, interval: Array, key: Array, clip_keys: Array, dropout_keys: Array | None
    ) -> tuple[Array, Array]:
        """Corrupt the clips [B,t,N,C] and run the trunk; return z [B,t,N,D] and the mask bool [B,t,N]."""
        masking, shape, own = self.config.masking, self.shape, self.layout.local_frames
        keys = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(clip_keys)
        mask = own(draw_masks(key, keys[0], shape.frames, shape.tokens, masking), 1)
        levels = 1 if masking.noise_per == 'clip' else shape.frames
        level = jax.vmap(lambda k: jax.random.randint(k, (levels,), 0, shape.noise_levels))(keys[1])
        level = own(jnp.broadcast_to(level, (level.shape[0], shape.frames)), 1)
        noise = own(_normal(keys[2], (shape.frames, *clean.shape[2:])), 1)
        noised = clean + jnp.asarray(masking.noise_std)[level][..., None, None] * noise
        masked_input = clean
        if self.config.model.teacher_forcing == 'masked':
            masked_input = noised if masking.noise_masked_teacher else clean
            level = level if masking.noise_masked_teacher else jnp.zeros_like(level)
        elif masking.noise_visible:
            masked_input = noised
        history = None
        if masking.history_dropout:
            history = jax.vmap(jax.random.uniform)(keys[3]) >= masking.history_dropout
        inputs = noised, masked_input, mask, interval, level, dropout_keys
        return self.trunk.apply({'params': params}, *inputs, history=history), mask

    def _head_loss(self, params: Any, clean: Array, z: Array, clip_keys: Array) -> tuple[Array, Array]:
        """Return (mse, vb), [B, t, N] each: means over M independent diffusion draws for each token."""
        head, own = self.config.model.head, self.layout.local_frames
        process, shape = full_process(head.timesteps), (self.shape.frames, *clean.shape[2:])

        def draw(clip_key: Array, number: Array) -> tuple[Array, Array]:
            i_key, noise_key = jax.random.split(jax.random.fold_in(clip_key, number))
            return jax.random.randint(i_key, shape[:-1], 0, head.timesteps), jax.random.normal(noise_key, shape)

        def losses(numbers: Array) -> tuple[Array, Array]:
            i, noise = (own(x, 2) for x in jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(clip_keys, numbers))
            targets = jnp.broadcast_to(clean[:, None], noise.shape)
            output = self.head.apply({'params': params}, add_noise(process, targets, noise, i), i, z[:, None])
            per_draw = diffusion_loss(process, head.prediction, output, targets, noise, i)
            return jax.tree.map(lambda x: jnp.mean(x, axis=1), per_draw)

        numbers = jnp.arange(head.repeats)
        remat = self.config.train.remat
        if remat == 'none':
            return losses(numbers)
        # Draws run one by one and are rematerialised: the activations of a wide head for all draws do not fit into HBM.
        one_by_one = jax.lax.map(jax.checkpoint(losses, policy=POLICIES[remat], prevent_cse=False), numbers[:, None])
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), one_by_one)


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Draw standard normal float32 [B, *shape] from one key per clip [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
