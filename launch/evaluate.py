"""Evaluates a trained generator under a named protocol, and writes a table, JSON and an HTML report with videos.

python -m launch.evaluate --workdir runs/own/magi --out runs/own/score
python -m launch.evaluate --workdir runs/own/magi --protocol continuation --clips 8 --seeds 4 --out runs/own/score
python -m launch.evaluate --workdir runs/quickstart/magi --protocol shapes_five_frame --clips 512 --out runs/score

For an autoencoder it measures the distance of reconstructed clips from real ones, and writes a table and JSON:

python -m launch.evaluate --workdir runs/quickstart/autoencoder --protocol shapes_five_frame --out runs/reconstruction

The Fréchet video distance needs the weights of I3D: --weights i3d_pretrained_400.pt --weights_sha256 SHA256.
"""

import functools
from pathlib import Path
from typing import Any

from absl import flags

from magi_jax.checkpoint import load_config, newest_run
from magi_jax.config import DataConfig
from magi_jax.evaluation.extractors import VARIANTS, VerifiedFile
from magi_jax.evaluation.protocols import (
    CaptionedVideos,
    Continuations,
    Distances,
    explained,
    find_protocol,
    spelling,
)

from . import console, distributed, evaluations, text_evaluation
from .evaluations import Call

_COUNT = functools.partial(flags.DEFINE_integer, lower_bound=1)
_I3D_VARIANTS = [name.removeprefix('i3d-') for name in VARIANTS]

WORKDIR = console.define_path('workdir', None, 'folder of a trained run')
PROTOCOL = flags.DEFINE_string(
    'protocol',
    None,
    'name of the protocol; default: bouncing_shapes for a run on bouncing_objects/shapes, else continuation:\n'
    + explained(),
)
OUT = console.define_path('out', None, 'folder for metrics.json and report.html')
SEED = flags.DEFINE_integer('seed', 0, 'random seed of the samples', lower_bound=0)
CLIPS = _COUNT('clips', None, 'number of clips; more clips give more precise numbers')
SEEDS = _COUNT('seeds', None, 'number of seeds to sample with; the report shows mean ± standard deviation')
FRAMES = _COUNT('frames', None, 'frames of each clip, including the context', lower_bound=2)
CONTEXT_FRAMES = _COUNT('context_frames', None, 'context frames, for --protocol continuation')
INTERVAL = _COUNT('interval', None, 'frame interval in raw frames, for --protocol continuation')
LONG_CLIPS = _COUNT(
    'long_clips', None, 'number of long videos in which objects are tracked, for --protocol bouncing_shapes'
)
LONG_FRAMES = _COUNT('long_frames', None, 'frames of each long video, including the context', lower_bound=2)
I3D = flags.DEFINE_enum(
    'i3d', None, _I3D_VARIANTS, "variant of I3D for FVD, DeepMind's or VideoGPT's: batch norm epsilon and resize method"
)
AUTOENCODER = console.define_path(
    'autoencoder', None, 'folder of the autoencoder run, for its loss curves in the report of bouncing_shapes'
)
WEIGHTS = console.define_path('weights', None, 'weight file of I3D, for protocols that need it')
WEIGHTS_SHA256 = flags.DEFINE_string('weights_sha256', None, 'expected SHA-256 of --weights')
MADE_BY = flags.DEFINE_string('made_by', None, 'command that trained the run and called this command, for the report')

CHANGES = {
    'clips': CLIPS,
    'seeds': SEEDS,
    'frames': FRAMES,
    'context': CONTEXT_FRAMES,
    'interval': INTERVAL,
    'long_clips': LONG_CLIPS,
    'long_frames': LONG_FRAMES,
}


def main() -> None:
    """Evaluate a run, print the results and write metrics.json and report.html to --out.

    The protocol bouncing_shapes also writes videos. An autoencoder gets no report.html.
    """
    name = PROTOCOL.value or default_protocol(load_config(newest_run(WORKDIR.value)).data)
    changes: dict[str, Any] = {field: flag.value for field, flag in CHANGES.items()}
    changes['extractor'] = I3D.value and f'i3d-{I3D.value}'
    protocol = find_protocol(name, **changes)
    call = Call(WORKDIR.value, Path(OUT.value), spelling(name, **changes), SEED.value, MADE_BY.value)
    if isinstance(protocol, Distances):
        weights = VerifiedFile(WEIGHTS.value, WEIGHTS_SHA256.value or '') if WEIGHTS.value else None
        evaluations.measure_distances(call, protocol, weights)
    elif isinstance(protocol, Continuations):
        evaluations.measure_bouncing_shapes(call, protocol, AUTOENCODER.value)
    elif isinstance(protocol, CaptionedVideos):
        text_evaluation.measure_text_steering(call, protocol)
    else:
        evaluations.measure_continuation(call, protocol)


def default_protocol(data: DataConfig) -> str:
    """Return the name of the protocol for a run on this data."""
    return 'bouncing_shapes' if data.source == 'bouncing_objects/shapes' else 'continuation'


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
