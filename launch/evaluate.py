"""Measures a trained generator under a named protocol: a table, JSON, example videos and an HTML report.

python -m launch.evaluate --workdir runs/own/magi --out runs/own/score
python -m launch.evaluate --workdir runs/own/magi --protocol continuation --clips 8 --seeds 4 --out runs/own/score
python -m launch.evaluate --workdir runs/quickstart/magi --protocol shapes_five_frame --clips 512 --out runs/score

Of an autoencoder, how far its reconstructions are from real clips (a table and JSON):

python -m launch.evaluate --workdir runs/quickstart/autoencoder --protocol shapes_five_frame --out runs/reconstruction

The Fréchet video distance needs I3D's weights: --weights i3d_pretrained_400.pt --weights_sha256 <its SHA-256>.
"""

import functools
from pathlib import Path
from typing import Any

from absl import flags

from magi_jax.checkpoint import load_config
from magi_jax.config import DataConfig
from magi_jax.evaluation.extractors import VARIANTS, VerifiedFile
from magi_jax.evaluation.protocols import (
    Continuations,
    Distances,
    explained,
    find_protocol,
    spelling,
)

from . import console, distributed, evaluations
from .evaluations import Call

_COUNT = functools.partial(flags.DEFINE_integer, lower_bound=1)
_READINGS = [name.removeprefix('i3d-') for name in VARIANTS]

WORKDIR = console.define_path('workdir', None, 'folder of a run')
PROTOCOL = flags.DEFINE_string(
    'protocol',
    None,
    'what is measured, and how; by default bouncing_shapes for a run on bouncing_objects/shapes, else continuation:\n'
    + explained(),
)
OUT = console.define_path('out', None, 'folder to write to')
SEED = flags.DEFINE_integer('seed', 0, 'of the samples', lower_bound=0)
CLIPS = _COUNT('clips', None, 'how many clips are measured; more clips, surer numbers')
SEEDS = _COUNT('seeds', None, 'how many times clips are generated, each time with another seed: mean ± deviation')
FRAMES = _COUNT('frames', None, 'length of the clips, given frames included', lower_bound=2)
CONTEXT_FRAMES = _COUNT('context_frames', None, 'given frames, for --protocol continuation')
INTERVAL = _COUNT('interval', None, 'raw frames between two frames, for --protocol continuation')
LONG_CLIPS = _COUNT('long_clips', None, 'videos whose objects are followed, for --protocol bouncing_shapes')
LONG_FRAMES = _COUNT('long_frames', None, 'their length, given frames included', lower_bound=2)
I3D = flags.DEFINE_enum('i3d', None, _READINGS, "whose I3D an FVD is measured with, DeepMind's or VideoGPT's")
AUTOENCODER = console.define_path(
    'autoencoder', None, 'folder of the autoencoder run: adds its loss curves to the report of bouncing_shapes'
)
WEIGHTS = console.define_path('weights', None, 'file of I3D, for the protocols that need it')
WEIGHTS_SHA256 = flags.DEFINE_string('weights_sha256', None, 'what the SHA-256 of --weights must be')
MADE_BY = flags.DEFINE_string('made_by', None, 'command that trained the run and made this call, for the report')

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
    """Writes metrics.json and report.html to --out, for bouncing_shapes also videos, and prints what was found."""
    name = PROTOCOL.value or default_protocol(load_config(WORKDIR.value).data)
    changes: dict[str, Any] = {field: flag.value for field, flag in CHANGES.items()}
    changes['extractor'] = I3D.value and f'i3d-{I3D.value}'
    protocol = find_protocol(name, **changes)
    call = Call(WORKDIR.value, Path(OUT.value), spelling(name, **changes), SEED.value, MADE_BY.value)
    if isinstance(protocol, Distances):
        weights = VerifiedFile(WEIGHTS.value, WEIGHTS_SHA256.value or '') if WEIGHTS.value else None
        evaluations.measure_distances(call, protocol, weights)
    elif isinstance(protocol, Continuations):
        evaluations.measure_bouncing_shapes(call, protocol, AUTOENCODER.value)
    else:
        evaluations.measure_continuation(call, protocol)


def default_protocol(data: DataConfig) -> str:
    """Return the name of the protocol for a run on this data."""
    return 'bouncing_shapes' if data.source == 'bouncing_objects/shapes' else 'continuation'


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
