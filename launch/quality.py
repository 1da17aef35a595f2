"""Measures quality and speed of one trained run for many sampler settings: solvers, steps and temperatures.

python -m launch.quality --workdir runs/quickstart/magi

Every setting continues the same test clips of bouncing_objects/shapes from five real frames, with two seeds. The next
11 frames are compared with the true ones. Objects are detected in 96 frames (evaluation/prediction.py). The result file
is written after every setting. Settings that it already holds are not measured again.
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
from magi_jax.checkpoint import latest_step, newest_run
from magi_jax.config import ConfigError
from magi_jax.data.pipeline import Batch, eval_batches
from magi_jax.evaluation.prediction import score_prediction, score_rollout
from magi_jax.generator import Generator
from magi_jax.objectives.api import clip_shape

from . import console

WORKDIR = console.define_path('workdir', None, 'folder of a trained generator, on bouncing_objects/shapes')
JSON = console.define_path('json', None, 'result file; default: magi_jax/benchmarks/results/quality_speed.json')
CLIPS = flags.DEFINE_integer('clips', 64, 'number of clips compared with the true frames', lower_bound=1)
LONG_CLIPS = flags.DEFINE_integer('long_clips', 16, 'number of long clips in which objects are tracked', lower_bound=1)
LONG_FRAMES = flags.DEFINE_integer('long_frames', 101, 'frames of each long clip, including the context', lower_bound=7)

RESULTS = Path(quality.__file__).with_name('results') / 'quality_speed.json'
CONTEXT, FRAMES, SEEDS = 5, 16, (0, 1)


def main() -> None:
    """Measure, write the result file after every setting, and print the table."""
    generator = magi_jax.load(WORKDIR.value)
    data = generator.config.data
    if data.source != 'bouncing_objects/shapes':
        raise ConfigError(
            f'launch.quality does not support data.source = {data.source}: give a run on bouncing_objects/shapes'
        )
    path = Path(JSON.value) if JSON.value else RESULTS
    result = description() | (json.loads(path.read_text()) if path.exists() else {})
    if (measured := result['measured']) != (requested := description()['measured']):
        raise ConfigError(f'{path} holds measurements with {measured}, not {requested}: give another --json')
    (short,) = eval_batches(data, 'test', FRAMES, CLIPS.value, CLIPS.value)
    (long,) = eval_batches(data, 'test', LONG_FRAMES.value, LONG_CLIPS.value, LONG_CLIPS.value)
    defaults = dataclasses.asdict(type(generator.config.sampler)())  # for fields that are newer than the file
    for sampler in quality.settings(generator.config.sampler, clip_shape(generator.config, generator.tokenizer).tokens):
        fields = dataclasses.asdict(sampler)
        if any(defaults | row['sampler'] == fields for row in result['rows']):
            continue
        result['rows'].append({'sampler': fields} | measure(generator.with_sampler(sampler), short, long))
        draft = path.with_name(f'.{path.name}')
        draft.write_text(json.dumps(result, indent=1) + '\n')
        draft.replace(path)  # atomic, so that a kill never damages earlier rows
        print('  '.join(quality.cells(result['rows'][-1])), flush=True)
    print(f'\n{quality.table(result["rows"])}\n\nwritten to {path}')


def description() -> dict[str, Any]:
    """Return the facts that the numbers depend on, without rows."""
    return {
        'title': f'{FRAMES - CONTEXT} and {LONG_FRAMES.value - CONTEXT} frames after {CONTEXT} real ones',
        'command': f'python -m {__package__}.quality --workdir {WORKDIR.value}',
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'clock': clock(),
        'measured': {
            'step': latest_step(newest_run(WORKDIR.value)),
            'clips': CLIPS.value,
            'long_clips': LONG_CLIPS.value,
            'long_frames': LONG_FRAMES.value,
            'seeds': list(SEEDS),
        },
        'rows': [],
    }


def measure(generator: Generator, short: Batch, long: Batch) -> dict[str, Any]:
    """Return the quality for every seed, and the seconds of the last seed, when all programs are already compiled."""
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
    """Return the continued clips, and the seconds by `clock` that one frame of all clips took."""
    frames = batch['video'].shape[1]
    now = {'cpu': time.process_time, 'wall': time.perf_counter}[clock()]
    start = now()
    generated = generator.sample(batch['video'][:, :CONTEXT], frames, seed=seed, progress=False)
    return generated, (now() - start) / (frames - CONTEXT)


def clock() -> str:
    """Return the name of the clock: 'cpu' for the time of all CPU cores, 'wall' on an accelerator.

    The CPU time does not count other programs.
    """
    return 'cpu' if jax.default_backend() == 'cpu' else 'wall'


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    console.run(main)
