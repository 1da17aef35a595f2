"""Compiles the training or sampling step for a TPU slice, without a TPU, and reports whether it fits.

python -m launch.compile --config configs/magi_ucf101.py --topology v5e:4x4 [--target sample] [--config.mesh.fsdp=4 ...]

`--stage N` selects a stage of a config with stages; the default is the last.

It needs libtpu: pip install -e '.[tpu]' -c requirements.txt. The exit status is 2 if the program does not fit.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from magi_jax.config import Config, select_stage
from magi_jax.models.flops import frame_flops, train_flops
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.chips import Chip, parse_topology
from magi_jax.parallel.footprint import bytes_per_device, read_program, requested_hbm
from magi_jax.parallel.mesh import make_mesh
from magi_jax.sampling.video import VideoSampler
from magi_jax.training.lowering import abstract_tokenizer, encoder_flops, lower_next_frame, lower_train_step
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory

from . import console
from .config_flag import define_config, define_stage
from .fit import format_report, suggestions, topology_devices

CONFIG, STAGE = define_config(), define_stage()
TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU slice, e.g. v4:2x2x4, v5e:4x4, v5p:2x2x4 or v6e:4x4')
TARGET = flags.DEFINE_enum(
    'target',
    'train',
    ['train', 'sample'],
    'program to compile: train = the optimizer step, sample = one frame of the sampler',
)
CLIPS = flags.DEFINE_integer('clips', 0, 'batch size for --target sample; 0 = one video per chip')
FRAMES = flags.DEFINE_integer('frames', 16, 'frames of each video for --target sample')
JSON = console.define_path('json', None, 'file to write the report to, as JSON')

DOES_NOT_FIT = 2


def main() -> int:
    """Compile the program and print the report. Return 0 if it fits, 2 if it does not."""
    config = select_stage(console.read_config(CONFIG), STAGE.value)
    chip, _ = parse_topology(TOPOLOGY.value)
    mesh = make_mesh(config.mesh, topology_devices(TOPOLOGY.value))
    report = {'topology': TOPOLOGY.value, 'chips': mesh.size, 'mesh': dict(mesh.shape), 'target': TARGET.value}
    report |= {'remat': config.train.remat, 'accumulate': config.optim.accumulate, 'hbm_available': chip.hbm_bytes}
    clips = config.data.batch_size if TARGET.value == 'train' else CLIPS.value or mesh.size
    report |= {'clips': clips, 'analytic_flops': analytic_flops(config, clips / mesh.size)}
    report |= compile_and_measure(config, mesh, chip, clips)
    report['fits'] = report['hbm_needed'] is not None and report['hbm_needed'] <= chip.hbm_bytes
    if not report['fits']:
        report['suggestions'] = suggestions(config, chip, report)
    print('\n'.join(format_report(report)))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(report, indent=2) + '\n')
    return 0 if report['fits'] else DOES_NOT_FIT


def compile_and_measure(config: Config, mesh: Mesh, chip: Chip, clips: int) -> dict[str, Any]:
    """Compile the target; return memory, FLOPs, collectives and times. Return only memory if it does not fit."""
    tokenizer = abstract_tokenizer(config)
    if TARGET.value == 'train':
        state = StateFactory(make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps), mesh)
        abstract = state.abstract()
        groups = {'parameters': abstract.params, 'optimizer': abstract.opt_state, 'EMA': abstract.ema}
        lowered = lower_train_step(config, mesh, tokenizer)
        known = {'state': {name: bytes_per_device(group) for name, group in groups.items()}}
    else:
        lowered, known = lower_next_frame(config, mesh, tokenizer, clips, FRAMES.value), {}
    print(f'compiling for {mesh.size} {chip.name} chips; a large program takes minutes ...', flush=True)
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return known | {'hbm_needed': requested_hbm(str(error)), 'compiler': str(error).splitlines()[0]}
    known['compile_seconds'] = time.perf_counter() - started
    footprint = read_program(compiled)
    known |= {'hbm_needed': footprint.needed, 'seconds': footprint.seconds(chip)}
    return known | dataclasses.asdict(footprint)


def analytic_flops(config: Config, clips: float) -> dict[str, float]:
    """Return the FLOPs of the model for `clips` clips, by component. The result is empty for an autoencoder."""
    tokenizer = abstract_tokenizer(config)
    if tokenizer is None:
        return {}
    shape = clip_shape(config, tokenizer)
    if TARGET.value == 'train':
        flops = train_flops(config, shape) | {'tokenizer': encoder_flops(config, tokenizer)}
    else:
        slots = VideoSampler(config, shape).window_size(tokenizer.latent_frames(FRAMES.value))
        flops = frame_flops(config, shape, slots)
    return {name: clips * count for name, count in flops.items()}


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'topology'])
    console.run(main)
