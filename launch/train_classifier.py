"""Trains the classifier behind the embedded score. Its weights are committed, so users need not run this.

python -m launch.train_classifier --kind shapes --out magi_jax/evaluation/weights

Existing weights are not overwritten: remove them first. Scores with old and new weights are not comparable, so the name
of a score contains the hash of the weights. The classifier must be trained on the training split, because the score
uses test clips.
"""

import hashlib
import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from magi_jax.evaluation import classifier_training as training
from magi_jax.evaluation.classifier import FACTORS, check_gate

from . import console

KIND = flags.DEFINE_enum('kind', None, sorted(FACTORS), 'configuration of the dataset bouncing_objects')
OUT = console.define_path('out', None, 'folder for KIND.npz and KIND.json')
STEPS = flags.DEFINE_integer('steps', 950, 'number of optimizer steps')
BATCH = flags.DEFINE_integer('batch', 32, 'batch size in clips')
VIDEOS = flags.DEFINE_integer('videos', 2048, 'number of training videos; the training split is unlimited')
SEED = flags.DEFINE_integer('seed', 0, 'random seed of clips, parameters and batches')

CLIPS_A_VIDEO = 1
VALIDATION_VIDEOS = 1024


def main() -> None:
    """Train the classifier and write it to --out. Raise ConfigError if a factor misses its required accuracy."""
    kind, started, out = KIND.value, time.monotonic(), Path(OUT.value)
    console.check_new(out / f'{kind}.npz', out / f'{kind}.json')
    videos = tqdm(range(VIDEOS.value), unit='video', dynamic_ncols=True, desc='drawing')
    clips = list(training.draw_clips(kind, 'train', videos, CLIPS_A_VIDEO, SEED.value))
    updates = training.train(kind, clips, STEPS.value, BATCH.value, SEED.value)
    steps = tqdm(updates, total=STEPS.value, unit='step', dynamic_ncols=True)
    for number, (params, loss) in enumerate(steps):  # noqa: B007, the last parameters are used
        if number % 100 == 99:
            steps.set_postfix(loss=f'{float(loss):.3f}')
    # Weights are rounded before they are measured, so accuracies are those of the stored weights.
    flat = {name: np.float16(value) for name, value in flatten_dict(jax.device_get(params), sep='/').items()}
    rounded = jax.tree.map(lambda x: np.float32(np.float16(x)), jax.device_get(params))
    held_out = list(training.draw_clips(kind, 'validation', range(VALIDATION_VIDEOS), CLIPS_A_VIDEO, SEED.value))
    accuracies = training.accuracies(kind, rounded, held_out, BATCH.value)
    for factor, accuracy in accuracies.items():
        print(f'{factor:12} {accuracy:.4f}')
    check_gate(kind, accuracies)
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / f'{kind}.npz', **flat)
    facts = {
        'sha256': hashlib.sha256((out / f'{kind}.npz').read_bytes()).hexdigest(),
        'accuracies': accuracies,
        'validation_clips': len(held_out),
        'training': {name: flag.value for name, flag in (('steps', STEPS), ('batch', BATCH), ('videos', VIDEOS))},
        'seed': SEED.value,
        'command': f'python -m {__package__}.train_classifier --kind {kind} --out magi_jax/evaluation/weights',
        'jax': jax.__version__,
    }
    (out / f'{kind}.json').write_text(json.dumps(facts, indent=2) + '\n')
    print(f'{sum(value.size for value in flat.values()):,} parameters, {time.monotonic() - started:.0f} s, to {out}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['kind', 'out'])
    console.run(main)
