"""Diffusion loss on the masked tokens of every frame (MAGI, arXiv 2501.12389 §4) or of one (VideoMAR, 2506.14168).

Dimension key: B clips, T latent frames, G frames that the head evaluates (T, or the target alone), N tokens of a frame,
C token width, D width, M diffusion draws a token; t, g, n: the local part of T, G, N on one device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from magi_jax.config import Config
from magi_jax.diffusion.gaussian import add_noise, diffusion_loss
from magi_jax.diffusion.schedule import full_process
from magi_jax.layers.layout import SINGLE_DEVICE, Layout
from magi_jax.layers.trunk import POLICIES
from magi_jax.masking.frames import draw_target, hide_after_target
from magi_jax.masking.tokens import draw_masks
from magi_jax.models.api import VideoModel, make_model
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.patches import patchify
from magi_jax.tokenizers.pixels import to_float

Array = jax.Array

TEXT_DROPOUT = 4  # folded into the key of a clip; smaller numbers would repeat keys of its `split`


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion:
    """The objective of MAGI and VideoMAR, whatever the teacher forcing.

    It trains trunk and head; the tokenizer is frozen.
    """

    config: Config
    shape: ClipShape
    layout: Layout = SINGLE_DEVICE

    @property
    def trunk(self) -> VideoModel:
        return make_model(self.config, self.shape, self.layout, training=True)

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
        level, text = jnp.zeros((1, shape.frames), jnp.int32), None
        if self.config.text.encoder:
            states = jnp.zeros((1, self.config.text.length, self.config.text.width))
            text = TextStates(states, jnp.ones(states.shape[:2], bool), jnp.ones((1,), bool))
        conditions = Conditions(ones, level, text=text)
        observed = tokens if self.config.model.teacher_forcing == 'complete' else None
        z = jnp.zeros((1, self.config.model.width))
        return {
            'trunk': self.trunk.clone(layout=SINGLE_DEVICE).init(trunk_key, observed, tokens, mask, conditions)[
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
        clean = patchify(self._latents(tokenizer, batch, purposes[0]), self.config.model.patch)
        clean = jax.lax.stop_gradient(self.layout.local_sites(clean, 2))
        dropout_keys = purposes[3] if train else None
        z, weight, target = self._trunk_output(params['trunk'], clean, batch, key, purposes[1], dropout_keys)
        if target is not None and self.trunk.sharded == 'sites':
            clean, z, weight = (_frame(x, target) for x in (clean, z, weight))
        mse, vb = self._head_loss(params['head'], clean, z, purposes[2])
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
        self,
        params: Any,
        clean: Array,
        batch: dict[str, Array],
        key: Array,
        clip_keys: Array,
        dropout_keys: Array | None,
    ) -> tuple[Array, Array, Array | None]:
        """Corrupt the clips [B,t,n,C] and run the trunk.

        Returns:
          z [B,t,n,D]; bool [B,t,n], the tokens with a loss; the target frame int32 [B] if there is only one, else None.
        """
        masking, shape, own = self.config.masking, self.shape, self.layout.local_frames
        forcing, frames = self.config.model.teacher_forcing, shape.frames
        keys = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(clip_keys)
        mask = draw_masks(key, keys[0], frames, shape.tokens, masking)
        numbers, target = own(jnp.arange(frames), 0), None
        first = 0 if masking.first_frame_loss else min(1, frames - 1)
        counted = (numbers >= first)[None]
        if masking.target_frames == 'one':
            target = jax.vmap(lambda k: draw_target(k, first, frames))(clip_keys)
            counted = numbers[None] == target[:, None]
            mask = hide_after_target(mask, target) if forcing == 'single' else mask
        mask = self._own(mask, 1)
        observed, visible, level = self._observations(clean, keys[1], keys[2])
        if forcing != 'complete':
            observed = None
        history = None
        if masking.history_dropout:
            history = jax.vmap(jax.random.uniform)(keys[3]) >= masking.history_dropout
        conditions = Conditions(batch['interval'], level, history, self._text(batch, clip_keys, dropout_keys))
        z = self.trunk.apply({'params': params}, observed, visible, mask, conditions, dropout_keys)
        unpadded = self.layout.unpadded_frames(frames)[:, None] & self.layout.unpadded_sites(shape.tokens)[None]
        return z, mask & counted[..., None] & unpadded[None], target

    def _observations(self, clean: Array, level_keys: Array, noise_keys: Array) -> tuple[Array, Array, Array]:
        """Add noise to the clips [B,t,n,C].

        Returns:
          The frames as they are observed; the frames whose visible tokens masked frames show; levels int32 [B,t].
        """
        masking, shape, own = self.config.masking, self.shape, self.layout.local_frames
        if masking.noise_std == (0.0,):
            return clean, clean, jnp.zeros(clean.shape[:2], jnp.int32)
        levels = 1 if masking.noise_per == 'clip' else shape.frames
        level = jax.vmap(lambda k: jax.random.randint(k, (levels,), 0, shape.noise_levels))(level_keys)
        level = own(jnp.broadcast_to(level, (level.shape[0], shape.frames)), 1)
        noise = own(_normal(noise_keys, (shape.frames, *clean.shape[2:])), 1)
        noised = clean + jnp.asarray(masking.noise_std)[level][..., None, None] * noise
        if self.config.model.teacher_forcing == 'masked':
            return (noised, noised, level) if masking.noise_masked_teacher else (clean, clean, jnp.zeros_like(level))
        return noised, noised if masking.noise_visible else clean, level

    def _text(self, batch: dict[str, Array], clip_keys: Array, dropout_keys: Array | None) -> TextStates | None:
        """Return the text states of the batch; in training some clips lose theirs."""
        if not self.config.text.encoder:
            return None
        keep = jnp.ones(batch['text_mask'].shape[:1], bool)
        if dropout_keys is not None and self.config.text.dropout:
            keys = jax.vmap(jax.random.fold_in, (0, None))(clip_keys, TEXT_DROPOUT)
            keep = jax.vmap(jax.random.uniform)(keys) >= self.config.text.dropout
        return TextStates(batch['text'].astype(jnp.float32), batch['text_mask'], keep)

    def _own(self, x: Array, axis: int) -> Array:
        """Return this device's part of an array of all frames and sites, at `axis` and the next one."""
        return self.layout.local_sites(self.layout.local_frames(x, axis), axis + 1)

    def _head_loss(self, params: Any, clean: Array, z: Array, clip_keys: Array) -> tuple[Array, Array]:
        """Return (mse, vb), [B, g, n] each: means over M independent diffusion draws for each token."""
        head, frames = self.config.model.head, clean.shape[1] if self.trunk.sharded == 'sites' else self.shape.frames
        process, shape = full_process(head.timesteps), (frames, self.shape.tokens, self.shape.token_width)

        def draw(clip_key: Array, number: Array) -> tuple[Array, Array]:
            i_key, noise_key = jax.random.split(jax.random.fold_in(clip_key, number))
            return jax.random.randint(i_key, shape[:-1], 0, head.timesteps), jax.random.normal(noise_key, shape)

        def losses(numbers: Array) -> tuple[Array, Array]:
            i, noise = (self._own(x, 2) for x in jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(clip_keys, numbers))
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


def _frame(x: Array, target: Array) -> Array:
    """Return one frame of each clip: x [B, T, ...] at `target` [B] as [B, 1, ...]."""
    return jnp.take_along_axis(x, jnp.expand_dims(target, tuple(range(1, x.ndim))), axis=1)


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Draw standard normal float32 [B, *shape] from one key per clip [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
