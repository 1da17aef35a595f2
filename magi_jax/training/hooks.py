"""Work on a schedule beside the optimizer steps: validation, preview videos, export of a finished tokenizer."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw

from magi_jax.config import Config
from magi_jax.data.pipeline import train_batches, validation_clips
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.objectives.api import clip_shape
from magi_jax.parallel.hosts import gather_to_hosts, host_rows, padded_rows, shard
from magi_jax.parallel.layout import sampling_layout
from magi_jax.parallel.mesh import batch_sharding, replicated_sharding
from magi_jax.sampling.stream import clip_keys, sample_clips
from magi_jax.sampling.video import VideoSampler, sampling_weights
from magi_jax.tokenizers.api import Tokenizer
from magi_jax.tokenizers.folder import save_tokenizer
from magi_jax.tokenizers.pixels import to_float, to_uint8
from magi_jax.tokenizers.statistics import measure_statistics

STATISTICS_BATCHES = 64
PREVIEW_CLIPS = 4
LABEL_HEIGHT = 14  # height of the label of a row in pixels
# Entries of a batch that objectives read; labels are dropped.
MODEL_INPUTS = 'video', 'mean', 'log_variance', 'interval', 'example', 'text', 'text_mask'


@dataclasses.dataclass(frozen=True)
class Validation:
    """The fixed clips of every validation and preview.

    Attributes:
      batches: rows of this host in each validation batch; a partial last batch is left out.
      preview: clips of previews, the same on all hosts.
    """

    batches: list[dict[str, np.ndarray]]
    preview: dict[str, np.ndarray]


def read_validation(config: Config, mesh: Mesh) -> Validation:
    """Read the first clips of the validation split.

    If there are fewer than one batch, some are repeated until every device has one.
    """
    clips, size = validation_clips(config.data, config.text), config.data.batch_size
    count = min(config.train.eval_batches, len(clips) // size)
    batches = np.arange(count * size).reshape(count, size) if count else [padded_rows(mesh, len(clips))]
    host_parts = [batch[host_rows(mesh, len(batch))] for batch in batches]
    preview_rows = range(min(PREVIEW_CLIPS, len(clips)))
    return Validation([_model_inputs(clips.read(part)) for part in host_parts], _model_inputs(clips.read(preview_rows)))


def _model_inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def mean_metrics(metrics: list[dict[str, jax.Array]], prefix: str) -> dict[str, float]:
    """Average metrics of equal batches, and put `prefix` before their names."""
    host = jax.device_get(metrics)
    return {f'{prefix}{name}': float(np.mean([entry[name] for entry in host])) for name in host[0]}


def preview(
    config: Config, mesh: Mesh, params: Any, tokenizer: Tokenizer | None, clips: dict[str, np.ndarray]
) -> np.ndarray:
    """Render clips above the model's version of them: uint8 [T, 2(H+14), B*W, 3] on every host.

    An autoencoder shows reconstructions. A generator shows continuations of the first frame of each clip. If the data
    are latents, the real clips are not available: the upper row then shows their reconstructions, and is labelled so.

    Args:
      config: config of the run.
      mesh: mesh of the run; all its hosts compute the clips together.
      params: EMA parameters, sharded on the mesh.
      tokenizer: tokenizer of a generator; None for an autoencoder.
      clips: interval int32 [B], and video uint8 [B, T, H, W, 3] or `mean` of its latents, which are decoded here.
    """
    count = len(clips['interval'])
    rows = padded_rows(mesh, count)
    if 'video' in clips:
        video = clips['video'][rows]
    else:
        video = gather_to_hosts(_decode(tokenizer, shard(batch_sharding(mesh), clips['mean'][rows])))
    if config.objective == 'autoencoder':
        generated = _reconstruct(trained_tokenizer(config, params), shard(batch_sharding(mesh), video))
    else:
        shape = clip_shape(config, tokenizer)
        sampler = VideoSampler(config, shape, sampling_layout(config, shape, mesh))
        conditions = Conditions(clips['interval'][rows], text=_text(clips, rows))
        weights = jax.jit(functools.partial(sampling_weights, config), out_shardings=replicated_sharding(mesh))(params)
        generated = sample_clips(
            sampler,
            weights,
            tokenizer,
            context=video[:, :1],
            frames=video.shape[1],
            conditions=conditions,
            keys=clip_keys(config.seed, range(len(video))),
            sharding=batch_sharding(mesh),
        )
    upper, lower = row_names(config.objective, clips)
    return labelled_rows({upper: video[:count], lower: gather_to_hosts(generated)[:count]})


def row_names(objective: str, clips: dict[str, np.ndarray]) -> tuple[str, str]:
    """Return the labels of a preview's two rows. Clips of latents have only a reconstruction, not the real frames."""
    upper = 'real' if 'video' in clips else 'reconstruction'
    return upper, 'reconstruction' if objective == 'autoencoder' else 'generated'


def labelled_rows(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Place clips uint8 [B, T, H, W, 3] side by side: one row per entry, under a strip with its name.

    Returns:
      uint8 [T, R(H+14), B*W, 3] for R rows.
    """
    parts = []
    for name, clips in rows.items():
        row = np.concatenate(list(clips), axis=2)
        strip = Image.new('RGB', (row.shape[2], LABEL_HEIGHT))
        ImageDraw.Draw(strip).text((2, 1), name, fill='white')
        parts += [np.broadcast_to(np.asarray(strip), (len(row), LABEL_HEIGHT, row.shape[2], 3)), row]
    return np.concatenate(parts, axis=1)


def trained_tokenizer(config: Config, params: Any) -> Tokenizer:
    """Return the autoencoder being trained, with latent mean 0 and std 1."""
    channels = config.tokenizer.channels
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return Tokenizer(params, zeros, ones, dataclasses.replace(config.tokenizer, path=''))


def export_tokenizer(config: Config, params: Any, folder: Path) -> None:
    """Measure the latent statistics of a finished autoencoder on training clips, and write its folder.

    All hosts call it. The first host does the work, which takes seconds.
    """
    tokenizer = trained_tokenizer(config, gather_to_hosts(params))
    if jax.process_index() > 0:
        return
    batches = train_batches(config.data, config.seed)
    videos = (batch['video'] for batch in itertools.islice(batches, STATISTICS_BATCHES))
    mean, std = measure_statistics(tokenizer, videos)
    batches.close()
    tokenizer = tokenizer.replace(latent_mean=jnp.asarray(mean), latent_std=jnp.asarray(std))
    provenance = {
        'dataset': config.data.source,
        'split': config.data.train_split,
        'clips': STATISTICS_BATCHES * config.data.batch_size,
        'seed': config.seed,
    }
    save_tokenizer(tokenizer, folder, provenance)


@jax.jit
def _decode(tokenizer: Tokenizer, mean: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.normalize(mean)))


@jax.jit
def _reconstruct(tokenizer: Tokenizer, video: jax.Array) -> jax.Array:
    return to_uint8(tokenizer.decode(tokenizer.encode(to_float(video))))


def _text(clips: dict[str, np.ndarray], rows: np.ndarray) -> TextStates | None:
    """Return the text states of some rows of a batch, or None if it has no text."""
    if 'text' not in clips:
        return None
    return TextStates(clips['text'][rows].astype(np.float32), clips['text_mask'][rows], np.ones(len(rows), bool))
