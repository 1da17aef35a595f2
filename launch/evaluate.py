"""Measures a trained generator under a named protocol: a table, JSON, example videos and an HTML report.

python -m launch.evaluate --workdir runs/quickstart/magi --protocol bouncing_shapes --out runs/quickstart
python -m launch.evaluate --workdir runs/quickstart/magi --protocol shapes_five_frame_quick --out runs/quickstart/score

Of an autoencoder, how far its reconstructions are from real clips (a table and JSON):

python -m launch.evaluate --workdir runs/quickstart/autoencoder --protocol shapes_five_frame --out runs/reconstruction

The Fréchet video distance needs I3D's weights: --weights i3d_pretrained_400.pt --weights_sha256 <its SHA-256>.
"""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import magi_jax
from launch import console, distributed
from magi_jax.checkpoint import load_config
from magi_jax.config import ConfigError, MeshConfig
from magi_jax.data.pipeline import eval_batches
from magi_jax.data.prepared import CACHE
from magi_jax.data.video_file import write_gif, write_mp4
from magi_jax.evaluation.extractors import VerifiedFile, make_extractor
from magi_jax.evaluation.pictures import enlarge, side_by_side
from magi_jax.evaluation.prediction import Result, score_prediction, score_rollout
from magi_jax.evaluation.protocols import PROTOCOLS, Continuations, Distances, find_protocol
from magi_jax.evaluation.real_clips import RealClips
from magi_jax.evaluation.report import Clips, ReportContent, write_page, write_report
from magi_jax.evaluation.score_report import WHAT, ScoreContent, render_score
from magi_jax.evaluation.scoring import BATCH, Measure, Score, score, score_reconstruction
from magi_jax.generator import reconstruct
from magi_jax.parallel.mesh import make_mesh
from magi_jax.tokenizers.folder import load_tokenizer
from magi_jax.training.metrics import read_metrics

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of a run')
PROTOCOL = flags.DEFINE_string('protocol', 'bouncing_shapes', f'what is measured, and how: {", ".join(PROTOCOLS)}')
OUT = flags.DEFINE_string('out', None, 'folder to write to')
SEED = flags.DEFINE_integer('seed', 0, 'of the samples')
AUTOENCODER = flags.DEFINE_string(
    'autoencoder', None, 'folder of the autoencoder run: adds its loss curves to the report'
)
WEIGHTS = flags.DEFINE_string('weights', None, 'file of I3D, for the protocols that need it')
WEIGHTS_SHA256 = flags.DEFINE_string('weights_sha256', None, 'what the SHA-256 of --weights must be')

FPS = 12
SHOWN = 6
AT_ONCE = 8  # clips that a device makes at once: on up to 8 devices the numbers are the same to the last bit


def main() -> None:
    """Writes metrics.json and report.html to --out, for continuations also the videos, and prints what was found."""
    protocol = find_protocol(PROTOCOL.value)
    if isinstance(protocol, Distances):
        _measure_distances(protocol)
    else:
        _measure_continuations(protocol)


def _measure_continuations(protocol: Continuations) -> None:
    generator = magi_jax.load(WORKDIR.value)
    if generator.config.data.source != 'bouncing_objects/shapes':
        raise ConfigError(
            f'protocol {PROTOCOL.value} needs a run on bouncing_objects/shapes, not on {generator.config.data.source}'
        )
    folder = Path(OUT.value)
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


def _measure_distances(protocol: Distances) -> None:
    weights = VerifiedFile(WEIGHTS.value, WEIGHTS_SHA256.value or '') if WEIGHTS.value else None
    extractor = make_extractor(protocol.extractor, protocol.dataset, weights)
    config = load_config(WORKDIR.value)
    data = config.data
    protocol.check(PROTOCOL.value, data.source, (data.height, data.width), data.max_interval)
    features = extractor.on(make_mesh(MeshConfig()))
    cache = Path(CACHE).expanduser() / 'features'
    measure = Measure(PROTOCOL.value, extractor, features, RealClips(data, protocol), cache)
    if config.objective == 'autoencoder':
        _measure_reconstruction(measure)
    else:
        _measure_generator(measure)


def _measure_reconstruction(measure: Measure) -> None:
    tokenizer = load_tokenizer(Path(WORKDIR.value) / 'tokenizer')
    distance = score_reconstruction(measure, functools.partial(reconstruct, tokenizer, at_once=_at_once()))
    if not console.is_first():
        return
    _write_metrics({'metric': measure.metric, 'protocol': measure.name, 'reconstruction': distance.to_json()})
    print(f'\n{measure.metric}, protocol {measure.name}')
    print(f'  real clips after the tokenizer {distance.mean:.4g}   real: {distance.floor:.4g}')


def _measure_generator(measure: Measure) -> None:
    generator, protocol, at_once = magi_jax.load(WORKDIR.value), measure.real.protocol, _at_once()

    def generate(context: np.ndarray, seed: int) -> np.ndarray:
        return generator.sample(context, protocol.frames, interval=protocol.interval, seed=seed, at_once=at_once)

    through_tokenizer = (
        functools.partial(generator.reconstruct, at_once=at_once) if generator.tokenizer.frame_wise else None
    )
    measured, shown = score(measure, generate, through_tokenizer, SEED.value, _batch_progress)
    if not console.is_first():
        return
    folder = _write_metrics(measured.to_json())
    content = ScoreContent(
        title=f'{protocol.dataset}: {PROTOCOL.value.replace("_", " ")}',
        summary=f'Generated clips of {protocol.frames} frames, {protocol.context} of them given, against real ones.',
        score=measured,
        shown=shown,
        settings=dataclasses.asdict(generator.config),
        commands=(f'python -m launch.evaluate --workdir {WORKDIR.value} --protocol {PROTOCOL.value} --out OUT',),
        facts=_facts(generator),
    )
    write_page(folder / 'report.html', render_score(content))
    _print_score(measured)
    print(f'\nreport: {folder / "report.html"}')


def _write_metrics(metrics: dict[str, Any]) -> Path:
    """Into the folder that it gives."""
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    run = {'workdir': WORKDIR.value, 'seed': SEED.value, 'revision': _revision()}
    (folder / 'metrics.json').write_text(json.dumps(metrics | {'run': run}, indent=1))
    return folder


def _print_score(measured: Score) -> None:
    print(f'\n{measured.extractor.label}\n{measured.metric}, protocol {measured.protocol_name}')
    for field, (name, _) in WHAT.items():
        spread = getattr(measured, field)
        print(f'  {name:48} {spread.mean:10.4g} ± {spread.std:.2g}   real: {spread.floor:.4g}')
    if measured.reconstruction is not None:
        print(f'  {"Fréchet distance of real clips after the tokenizer":48} {measured.reconstruction:10.4g}')
    for note in measured.notes:
        print(f'  note: {note}')


def _batch_progress(batches: Iterator[Any], total: int) -> Iterator[Any]:
    return tqdm(batches, total=total, unit='batch', dynamic_ncols=True, disable=not console.is_first())


def _at_once() -> int:
    return max(1, min(AT_ONCE, BATCH // jax.device_count()))


def _revision() -> str:
    """Of the code, if it is a git checkout."""
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD']
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or 'unknown'


def _continuations(
    generator: magi_jax.Generator, count: int, frames: int, context: int
) -> tuple[Clips, Mapping[str, np.ndarray]]:
    """The first `count` test clips, each real and continued from its first `context` frames; and their labels."""
    (batch,) = eval_batches(generator.config.data, 'test', frames, count, count)
    real = batch['video']
    drawn = {'seed': SEED.value, 'at_once': _at_once()}
    generated = generator.sample(real[:, :context], frames, progress=console.frame_progress, **drawn)
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
        facts=_facts(generator),
    )


def _facts(generator: magi_jax.Generator) -> dict[str, str]:
    config = generator.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(generator.weights))
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'flax', 'optax'))
    return {
        'parameters': f'{parameters:,}',
        'steps': f'{config.train.steps:,} of {config.data.batch_size} clips, {config.data.frames} frames each',
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})',
        'versions': versions,
    }


def _losses(workdir: str) -> dict[str, dict[int, float]]:
    metrics = read_metrics(workdir)
    return {'training': metrics['train/loss'], 'validation': metrics['validation/loss']}


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
