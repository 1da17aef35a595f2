"""Measures what faster sampling costs in quality: a table of solvers, steps and temperatures for one trained run.

python -m launch.quality --workdir runs/quickstart/magi

Every setting continues the same test clips of bouncing_objects/shapes from five real frames, with two seeds. 11 frames
are compared with the truth, and objects are detected in 96 frames (evaluation/prediction.py). The result file is
written after every setting, and settings in the file are not measured again.
"""

import dataclasses
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import magi_jax
from magi_jax.benchmarks import quality
from magi_jax.checkpoint import latest_step
from magi_jax.config import ConfigError, SamplerConfig
from magi_jax.data.pipeline import Batch, eval_batches
from magi_jax.evaluation.prediction import score_prediction, score_rollout
from magi_jax.generator import Generator
from magi_jax.objectives.api import clip_shape

from . import console

WORKDIR = console.define_path('workdir', None, 'folder of a generator run on bouncing_objects/shapes')
JSON = console.define_path('json', None, 'file of the result; default: one in magi_jax/benchmarks/results')
CLIPS = flags.DEFINE_integer('clips', 64, 'clips that are compared with the truth', lower_bound=1)
LONG_CLIPS = flags.DEFINE_integer('long_clips', 16, 'clips whose objects are followed', lower_bound=1)
LONG_FRAMES = flags.DEFINE_integer('long_frames', 101, 'their length, context included', lower_bound=7)

RESULTS = Path(quality.__file__).with_name('results') / 'quality_speed.json'
CONTEXT, FRAMES, SEEDS = 5, 16, (0, 1)


def main() -> None:
    """Measure, write the result file after every setting, and print the table."""
    generator = magi_jax.load(WORKDIR.value)
    data = generator.config.data
    if data.source != 'bouncing_objects/shapes':
        raise ConfigError(f'launch.quality needs a run on bouncing_objects/shapes, not on {data.source}')
    path = Path(JSON.value) if JSON.value else RESULTS
    result = description() | (json.loads(path.read_text()) if path.exists() else {})
    if (measured := result['measured']) != (asked := description()['measured']):
        raise ConfigError(f'{path} holds other measurements, {measured}, not {asked}: give another --json')
    (short,) = eval_batches(data, 'test', FRAMES, CLIPS.value, CLIPS.value)
    (long,) = eval_batches(data, 'test', LONG_FRAMES.value, LONG_CLIPS.value, LONG_CLIPS.value)
    defaults = dataclasses.asdict(SamplerConfig())  # of fields that are newer than the file
    for sampler in quality.settings(generator.config.sampler, clip_shape(generator.config, generator.tokenizer).tokens):
        fields = dataclasses.asdict(sampler)
        if any(defaults | row['sampler'] == fields for row in result['rows']):
            continue
        result['rows'].append({'sampler': fields} | measure(generator.with_sampler(sampler), short, long))
        draft = path.with_name(f'.{path.name}')
        draft.write_text(json.dumps(result, indent=1) + '\n')
        draft.replace(path)  # killed here, it leaves the earlier rows whole
        print('  '.join(quality.cells(result['rows'][-1])), flush=True)
    print(f'\n{quality.table(result["rows"])}\n\nwritten to {path}')


def description() -> dict[str, Any]:
    """Return the facts that the numbers depend on, without rows."""
    return {
        'title': f'{FRAMES - CONTEXT} and {LONG_FRAMES.value - CONTEXT} frames behind {CONTEXT} real ones',
        'command': f'python -m {__package__}.quality --workdir {WORKDIR.value}',
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'clock': clock(),
        'measured': {
            'step': latest_step(WORKDIR.value),
            'clips': CLIPS.value,
            'long_clips': LONG_CLIPS.value,
            'long_frames': LONG_FRAMES.value,
            'seeds': list(SEEDS),
        },
        'rows': [],
    }


def measure(generator: Generator, short: Batch, long: Batch) -> dict[str, Any]:
    """Return quality for every seed, and the seconds of the last one, whose programs are compiled."""
    by_seed: dict[str, list[float]] = {name: [] for name in quality.MEASURES}
    for seed in SEEDS:
        generated, seconds = continue_clips(generator, short, seed)
        prediction = score_prediction(generated[:, CONTEXT:], short['video'])
        by_seed['psnr'].append(prediction.numbers['psnr_model'])
        generated, _ = continue_clips(generator, long, seed)
        rollout = score_rollout(generated, long['video'], long, CONTEXT)
        for name in quality.MEASURES[1:]:
            by_seed[name].append(rollout.numbers[f'{name}_model'])
    return {'by_seed': by_seed, 'seconds_a_frame': seconds}


def continue_clips(generator: Generator, batch: Batch, seed: int) -> tuple[np.ndarray, float]:
    """Return the clips continued from their context, and the seconds by `clock` of one frame of all of them."""
    frames = batch['video'].shape[1]
    now = {'cpu': time.process_time, 'wall': time.perf_counter}[clock()]
    start = now()
    generated = generator.sample(batch['video'][:, :CONTEXT], frames, seed=seed, progress=False)
    return generated, (now() - start) / (frames - CONTEXT)


def clock() -> str:
    """Return 'cpu', the time of all cores, which excludes other programs; 'wall' on an accelerator."""
    return 'cpu' if jax.default_backend() == 'cpu' else 'wall'


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    console.run(main)
