"""The work of `launch.evaluate` for each kind of protocol: sample, measure, then print and write the results."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import magi_jax
from magi_jax.checkpoint import load_config, newest_run
from magi_jax.config import ConfigError, MeshConfig
from magi_jax.data import latents
from magi_jax.data.cache import cache_folder
from magi_jax.data.pipeline import eval_batches
from magi_jax.data.video_file import write_gif, write_mp4
from magi_jax.evaluation import continuation_report, report, scoring
from magi_jax.evaluation.continuation import score_continuation
from magi_jax.evaluation.continuation_clips import open_clips
from magi_jax.evaluation.extractors import VerifiedFile, make_extractor
from magi_jax.evaluation.pictures import enlarge, side_by_side
from magi_jax.evaluation.prediction import score_prediction, score_rollout
from magi_jax.evaluation.protocols import TAKES_ANY_RUN, Continuations, Distances, FrameComparison
from magi_jax.evaluation.real_clips import RealClips
from magi_jax.evaluation.report import Clips, ReportContent
from magi_jax.evaluation.score_report import WHAT, ScoreContent, render_score
from magi_jax.evaluation.scoring import Measure, Score
from magi_jax.parallel.mesh import make_mesh
from magi_jax.reconstruction import reconstruct
from magi_jax.tokenizers.folder import load_tokenizer
from magi_jax.training.metrics import read_metrics

from . import console
from .stages import Stages

FPS = 12
EXAMPLES = 6  # number of clips in the report
# Clips of a batch on one device. With this limit results are bit-identical on 1 to 8 devices.
PER_DEVICE_BATCH = 8
PRINTED_ROWS = 16  # largest number of rows of a printed table; the report has all rows
REPORT_STAGE = 'writing the report'


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of `launch.evaluate`.

    Attributes:
      workdir: folder of the run.
      out: folder to write to.
      protocol: name of the protocol with its changed settings.
      seed: random seed of the samples.
      made_by: command that called this one, e.g. the quickstart; or None.
    """

    workdir: str
    out: Path
    protocol: str
    seed: int
    made_by: str | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that reproduce the report."""
        this = shlex.join(['python', '-m', f'{__package__}.evaluate', *sys.argv[1:]])
        return (f'{self.made_by}  # training and report', f'{this}  # only the report') if self.made_by else (this,)

    def write(self, metrics: Any, page: str | None = None) -> None:
        """Write metrics.json and, with a page, report.html.

        Call it last, so that both files belong to the same call.
        """
        metrics_file, report_file = self.out / 'metrics.json', self.out / 'report.html'
        if metrics_file.exists():
            print(f'replacing metrics.json and report.html of an earlier call in {self.out}')
            report_file.unlink(missing_ok=True)
        report.write_page(metrics_file, json.dumps(metrics, indent=1))
        if page is not None:
            report.write_page(report_file, page)
            print(f'\nreport: {report_file}')


def measure_continuation(call: Call, protocol: FrameComparison) -> None:
    """Compare continued clips with the true frames, for a run on any dataset."""
    generator = magi_jax.load(call.workdir)
    clips = open_clips(generator.config.data, protocol, generator.tokenizer)
    resolved = clips.protocol
    with Stages(['sampling clips', REPORT_STAGE]) as stages:
        batch_size = per_device_batch()

        def generate(context: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
            options = {
                'interval': resolved.interval,
                'seed': seed,
                'numbers': numbers,
                'per_device_batch': batch_size,
            }
            return generator.sample(context, resolved.frames, **options, progress=frame_progress(stages, len(context)))

        result, shown = score_continuation(call.protocol, clips, generate, call.seed, EXAMPLES, stages.steps)
        if not console.is_first():
            return
        stages.next()
        page = continuation_report.render_continuation(
            result, shown, _run_facts(call, generator), call.commands, dataclasses.asdict(generator.config)
        )
    print(f'\nprotocol {call.protocol}, split {clips.split!r}, clips: {len(clips)}')
    headings, (mean, *frames) = continuation_report.table_rows(result)
    print(report.markdown_table(headings, [mean, *frames[:: -(-len(frames) // PRINTED_ROWS)]]))
    print('\n'.join(['', *continuation_report.sentences(result), *(f'note: {note}' for note in clips.notes)]))
    call.write(result.to_json() | call_facts(call), page)


def measure_bouncing_shapes(call: Call, protocol: Continuations, autoencoder: str | None) -> None:
    """Compare predicted frames of bouncing shapes with the true ones, and detect the objects in long videos."""
    generator = magi_jax.load(call.workdir)
    if generator.config.data.source != 'bouncing_objects/shapes':
        raise ConfigError(
            f'protocol bouncing_shapes needs a run on bouncing_objects/shapes, not on {generator.config.data.source}: '
            f'{TAKES_ANY_RUN}'
        )
    context = protocol.context
    with Stages(['sampling predictions', 'sampling long videos', 'detecting objects', REPORT_STAGE]) as stages:
        clips, labels = _continue_clips(call, generator, protocol.clips, protocol.frames, context, stages)
        long_clips, long_labels = _continue_clips(
            call, generator, protocol.long_clips, protocol.long_frames, context, stages
        )
        if not console.is_first():
            return
        stages.next()
        prediction = score_prediction(clips.generated[:, context:], clips.real, labels)
        rollout = score_rollout(long_clips.generated, long_clips.real, long_labels, context)
        stages.next()
        runs = {'Generator': generator.workdir} | ({'Autoencoder': autoencoder} if autoencoder else {})
        facts = _run_facts(call, generator)
        content = ReportContent(
            title='Bouncing shapes',
            summary=(
                f'A MAGI model with {facts["parameters"]} parameters continues unseen videos of bouncing shapes from '
                f'{context} real frames. It generates each frame from the earlier ones, with a KV cache.'
            ),
            prediction=prediction,
            clips=_examples(clips),
            rollout=rollout,
            long_clips=_examples(long_clips),
            losses={name: _losses(workdir) for name, workdir in runs.items()},
            settings=dataclasses.asdict(generator.config),
            commands=call.commands,
            facts=facts,
        )
        page = report.render(content)
        call.out.mkdir(parents=True, exist_ok=True)
        _write_videos(call.out, _examples(clips), _examples(long_clips))
    print('\n'.join(['', *report.achieved(prediction, rollout)]))
    goals = report.goals((prediction, rollout))
    print(f'\ngoals: {sum(goals.values())} of {len(goals)} reached')
    for rule, reached in goals.items():
        print(f'  {"reached" if reached else "missed "}  {rule}')
    call.write([prediction.to_json(), rollout.to_json()], page)


def measure_distances(call: Call, protocol: Distances, weights: VerifiedFile | None) -> None:
    """Measure distances from generated clips, or from reconstructions of an autoencoder, to real clips."""
    extractor = make_extractor(protocol.extractor, protocol.dataset, weights)
    extractor.check_frames(protocol.frames)
    config = load_config(newest_run(call.workdir))
    data = latents.source_videos_config(config.data)
    protocol.check(call.protocol, data.source, (data.height, data.width), data.max_interval)
    features = extractor.on(make_mesh(MeshConfig()))
    cache = cache_folder() / 'features'
    measure = Measure(call.protocol, extractor, features, RealClips(data, protocol), cache)
    if config.objective == 'autoencoder':
        _measure_reconstruction(call, measure)
    else:
        _measure_generator(call, measure)


def _measure_reconstruction(call: Call, measure: Measure) -> None:
    tokenizer = load_tokenizer(Path(call.workdir) / 'tokenizer')
    with Stages([*list(scoring.REAL_STAGES.values())[:2], scoring.TOKENIZER_STAGE]) as stages:
        roundtrip = functools.partial(reconstruct, tokenizer, per_device_batch=per_device_batch())
        distance = scoring.score_reconstruction(measure, roundtrip, stages.steps)
    if not console.is_first():
        return
    print(f'\n{measure.metric}, protocol {measure.name}')
    print(f'  real clips after the tokenizer {distance.mean:.4g}   real: {distance.floor:.4g}')
    metrics = {'metric': measure.metric, 'protocol': measure.name, 'reconstruction': distance.to_json()}
    call.write(metrics | call_facts(call))


def _measure_generator(call: Call, measure: Measure) -> None:
    generator, protocol, batch_size = magi_jax.load(call.workdir), measure.real.protocol, per_device_batch()
    frame_wise = generator.tokenizer.frame_wise
    roundtrip = functools.partial(generator.reconstruct, per_device_batch=batch_size) if frame_wise else None
    labels = [*scoring.REAL_STAGES.values(), scoring.SAMPLING_STAGE, *[scoring.TOKENIZER_STAGE][:frame_wise]]
    with Stages([*labels, REPORT_STAGE]) as stages:

        def generate(context: np.ndarray, seed: int) -> np.ndarray:
            options = {'interval': protocol.interval, 'seed': seed, 'per_device_batch': batch_size}
            return generator.sample(context, protocol.frames, **options, progress=frame_progress(stages, len(context)))

        measured, shown = scoring.score(measure, generate, roundtrip, call.seed, stages.steps)
        if not console.is_first():
            return
        stages.next()
        base = call.protocol.partition(' ')[0].replace('_', ' ')
        content = ScoreContent(
            title=f'{protocol.dataset}: {base}',
            summary=f'Clips of {protocol.frames} frames, {protocol.context} of them given, compared with real clips.',
            score=measured,
            shown=shown,
            settings=dataclasses.asdict(generator.config),
            commands=call.commands,
            facts=_run_facts(call, generator),
        )
        page = render_score(content)
    _print_score(measured)
    call.write(measured.to_json() | call_facts(call), page)


def _print_score(measured: Score) -> None:
    print(f'\n{measured.extractor.label}\n{measured.metric}, protocol {measured.protocol_name}')
    for field, (name, _) in WHAT.items():
        spread = getattr(measured, field)
        print(f'  {name:48} {spread.mean:10.4g} ± {spread.std:.2g}   real: {spread.floor:.4g}')
    if measured.reconstruction is not None:
        print(f'  {"Fréchet distance of real clips after the tokenizer":48} {measured.reconstruction:10.4g}')
    for note in measured.notes:
        print(f'  note: {note}')


def _continue_clips(
    call: Call, generator: magi_jax.Generator, count: int, frames: int, context: int, stages: Stages
) -> tuple[Clips, Mapping[str, np.ndarray]]:
    """Return `count` test clips, real and continued from their first `context` frames, and their labels."""
    (batch,) = eval_batches(generator.config.data, 'test', frames, count, count)
    real = batch['video']
    stages.next()
    options = {
        'seed': call.seed,
        'per_device_batch': per_device_batch(),
        'progress': frame_progress(stages, len(real)),
    }
    return Clips(real, generator.sample(real[:, :context], frames, **options), context), batch


def _examples(clips: Clips) -> Clips:
    return Clips(clips.real[:EXAMPLES], clips.generated[:EXAMPLES], clips.context)


def _write_videos(folder: Path, clips: Clips, long_clips: Clips) -> None:
    short, long = (
        side_by_side(each.real, each.generated, each.context, columns=1 if len(each.real) % 2 else 2)
        for each in (clips, long_clips)
    )
    write_gif(folder / 'prediction.gif', enlarge(short, 2), FPS)
    write_gif(folder / 'long.gif', enlarge(long, 2), FPS)
    write_mp4(folder / 'long.mp4', enlarge(long, 4), FPS)


def per_device_batch() -> int:
    """Return the number of clips that a device samples together."""
    return max(1, min(PER_DEVICE_BATCH, scoring.BATCH // jax.device_count()))


def frame_progress(stages: Stages, clips: int) -> Callable[..., Any]:
    """Return the argument `progress` of `Generator.sample` for this number of clips."""
    return functools.partial(stages.frames, parts=-(-clips // (per_device_batch() * jax.device_count())))


def call_facts(call: Call) -> dict[str, Any]:
    """Return the facts about this call for metrics.json."""
    return {'run': {'workdir': call.workdir, 'seed': call.seed, 'revision': _revision()}}


def _revision() -> str:
    """Return the git commit of the code, or 'unknown' outside a git checkout."""
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD']
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or 'unknown'


def _run_facts(call: Call, generator: magi_jax.Generator) -> dict[str, str]:
    config = generator.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(generator.weights))
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'flax', 'optax'))
    return {
        'run': call.workdir,
        'data': config.data.source,
        'parameters': f'{parameters:,}',
        'steps': f'{generator.step:,} of {config.data.batch_size} clips, {config.data.frames} frames each',
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})',
        'versions': versions,
    }


def _losses(workdir: str) -> dict[str, dict[int, float]]:
    metrics = read_metrics(workdir)
    return {'training': metrics['train/loss'], 'validation': metrics['validation/loss']}
