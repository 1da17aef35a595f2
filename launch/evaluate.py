"""Measures a trained generator under a named protocol: a table, JSON, example videos and an HTML report.

python -m launch.evaluate --workdir runs/quickstart/magi --protocol bouncing_shapes --out runs/quickstart
"""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import flags

import magi_jax
from launch import console, distributed
from magi_jax.config import ConfigError
from magi_jax.data.pipeline import eval_batches
from magi_jax.data.video_file import write_gif, write_mp4
from magi_jax.evaluation.pictures import enlarge, side_by_side
from magi_jax.evaluation.prediction import Result, score_prediction, score_rollout
from magi_jax.evaluation.report import Clips, ReportContent, write_report
from magi_jax.training.metrics import read_metrics

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of a generator run')
PROTOCOL = flags.DEFINE_string('protocol', 'bouncing_shapes', 'what is measured, and how: a name of PROTOCOLS')
OUT = flags.DEFINE_string('out', None, 'folder to write to')
SEED = flags.DEFINE_integer('seed', 0, 'of the samples')
AUTOENCODER = flags.DEFINE_string(
    'autoencoder', None, 'folder of the autoencoder run: adds its loss curves to the report'
)

FPS = 12
SHOWN = 6


@dataclasses.dataclass(frozen=True)
class BouncingShapes:
    """Continuations of five real frames at interval 1, on the first clips of the test split."""

    context: int = 5
    clips: int = 64
    frames: int = 16
    long_clips: int = 16
    long_frames: int = 101


PROTOCOLS = {
    'bouncing_shapes': BouncingShapes(),
    'bouncing_shapes_runlocal': BouncingShapes(clips=6, frames=8, long_clips=6, long_frames=12),
}


def main() -> None:
    """Writes metrics.json, prediction.gif, long.mp4, long.gif and report.html to --out, and prints the rules kept."""
    generator = magi_jax.load(WORKDIR.value)
    if generator.config.data.source != 'bouncing_objects/shapes':
        raise ConfigError(
            f'protocol {PROTOCOL.value} needs a run on bouncing_objects/shapes, not on {generator.config.data.source}'
        )
    if PROTOCOL.value not in PROTOCOLS:
        raise ConfigError(f'no protocol {PROTOCOL.value}; there are: {", ".join(PROTOCOLS)}')
    folder, protocol = Path(OUT.value), PROTOCOLS[PROTOCOL.value]
    clips, labels = _continuations(generator, protocol.clips, protocol.frames, protocol.context)
    long_clips, long_labels = _continuations(generator, protocol.long_clips, protocol.long_frames, protocol.context)
    if not console.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    prediction = score_prediction(clips.generated[:, protocol.context :], clips.real, labels)
    rollout = score_rollout(long_clips.generated, long_clips.real, long_labels, protocol.context)
    (folder / 'metrics.json').write_text(json.dumps([result.to_json() for result in (prediction, rollout)], indent=1))
    _write_videos(folder, clips, long_clips)
    write_report(folder / 'report.html', _report(generator, prediction, clips, rollout, long_clips))
    for result in (prediction, rollout):
        print(f'\n{result.protocol} ({result.clips} clips)')
        for rule, kept in result.passes.items():
            print(f'  {"kept  " if kept else "MISSED"}  {rule}')
    print(f'\nreport: {folder / "report.html"}')


def _continuations(
    generator: magi_jax.Generator, count: int, frames: int, context: int
) -> tuple[Clips, Mapping[str, np.ndarray]]:
    """The first `count` test clips, each real and continued from its first `context` frames; and their labels."""
    (batch,) = eval_batches(generator.config.data, 'test', frames, count, count)
    real = batch['video']
    generated = generator.sample(real[:, :context], frames, seed=SEED.value, progress=console.frame_progress)
    return Clips(real, generated, context), batch


def _write_videos(folder: Path, clips: Clips, long_clips: Clips) -> None:
    short = side_by_side(clips.real[:SHOWN], clips.generated[:SHOWN], clips.context, columns=2)
    write_gif(folder / 'prediction.gif', enlarge(short, 2), FPS)
    long = side_by_side(long_clips.real[:SHOWN], long_clips.generated[:SHOWN], long_clips.context, columns=2)
    write_gif(folder / 'long.gif', enlarge(long, 2), FPS)
    write_mp4(folder / 'long.mp4', enlarge(long, 4), FPS)


def _report(
    generator: magi_jax.Generator, prediction: Result, clips: Clips, rollout: Result, long_clips: Clips
) -> ReportContent:
    config = generator.config
    runs = {'Generator': WORKDIR.value} | ({'Autoencoder': AUTOENCODER.value} if AUTOENCODER.value else {})
    parameters = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'flax', 'optax'))
    return ReportContent(
        title='magi_jax quickstart',
        summary=(
            'A small MAGI, trained from scratch on this machine, continues videos of bouncing shapes from five real '
            'frames. Everything below was generated frame by frame with a KV cache and measured on unseen videos.'
        ),
        prediction=prediction,
        clips=Clips(clips.real[:SHOWN], clips.generated[:SHOWN], clips.context),
        rollout=rollout,
        long_clips=Clips(long_clips.real[:SHOWN], long_clips.generated[:SHOWN], long_clips.context),
        losses={name: _losses(workdir) for name, workdir in runs.items()},
        settings=dataclasses.asdict(config),
        commands=(
            'bash launch/quickstart.sh',
            f'python -m launch.sample --workdir {WORKDIR.value} --frames 64 --num 4 --out videos',
        ),
        facts={
            'parameters': f'{parameters:,}',
            'steps': f'{config.train.steps:,} of {config.data.batch_size} clips, {config.data.frames} frames each',
            'device': f'{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})',
            'versions': versions,
        },
    )


def _losses(workdir: str) -> dict[str, dict[int, float]]:
    metrics = read_metrics(workdir)
    return {'training': metrics['train/loss'], 'validation': metrics['validation/loss']}


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
