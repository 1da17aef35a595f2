"""Compiles the step that training or sampling runs for a TPU slice, without a TPU, and tells whether it fits.

python -m launch.compile --config configs/magi_ucf101.py --topology v5e:4x4 [--target sample] [--config.mesh.fsdp=4 ...]

Needs libtpu: pip install -e .[tpu] -c requirements.txt. Exit status 2 if the program does not fit.
"""

import dataclasses
import importlib.util
import json
import os
import time
import typing
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from launch import console
from magi_jax.config import Config, ConfigError, TrainConfig
from magi_jax.models.flops import frame_flops, train_flops
from magi_jax.objectives.api import clip_shape, make_objective
from magi_jax.parallel.chips import Chip, parse_topology
from magi_jax.parallel.footprint import bytes_per_device, hbm_asked_for, read_program, smallest_slice
from magi_jax.parallel.mesh import make_mesh
from magi_jax.sampling.video import VideoSampler
from magi_jax.training.lowering import abstract_tokenizer, encoder_flops, lower_next_frame, lower_train_step
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory

CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/NAME.py[:variant,runlocal]', lock_config=True)
TOPOLOGY = flags.DEFINE_string('topology', None, 'the slice: v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:4x4, ...')
TARGET = flags.DEFINE_enum('target', 'train', ['train', 'sample'], 'the optimizer step, or one frame of the sampler')
CLIPS = flags.DEFINE_integer('clips', 0, 'of --target sample: videos made at once; 0: one a chip')
FRAMES = flags.DEFINE_integer('frames', 16, 'of --target sample: length of the videos')
JSON = flags.DEFINE_string('json', None, 'also writes the report to this file')

DOES_NOT_FIT = 2
# libtpu looks for a TPU and for the machine's place in a slice, and locks itself; there is nothing to find here.
ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}


def main() -> int:
    """Returns 0 if the program fits, 2 if it does not, 1 on an error."""
    config, (chip, _) = console.read_config(CONFIG), parse_topology(TOPOLOGY.value)
    mesh = make_mesh(config.mesh, topology_devices(TOPOLOGY.value))
    report = {'topology': TOPOLOGY.value, 'chips': mesh.size, 'mesh': dict(mesh.shape), 'target': TARGET.value}
    report |= {'remat': config.train.remat, 'hbm_available': chip.hbm_bytes}
    clips = config.data.batch_size if TARGET.value == 'train' else CLIPS.value or mesh.size
    report |= {'clips': clips, 'analytic_flops': analytic_flops(config, clips / mesh.size)}
    report |= compile_and_measure(config, mesh, chip, clips)
    report['fits'] = report['hbm_needed'] is not None and report['hbm_needed'] <= chip.hbm_bytes
    if not report['fits']:
        report['ways_out'] = ways_out(config, chip, report)
    print('\n'.join(lines(report)))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(report, indent=2) + '\n')
    return 0 if report['fits'] else DOES_NOT_FIT


def topology_devices(topology: str) -> list[jax.Device]:
    """Descriptions of the chips of a slice, which no one has to own.

    Raises:
      ConfigError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec('libtpu') is None:
        raise ConfigError('launch.compile needs the TPU compiler: pip install -e .[tpu] -c requirements.txt')
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)  # a program for chips that are not here is not read back
    options = {'chip_config_name': 'megacore'} if topology.startswith('v4') else {}  # one device a chip, as on v5p
    try:
        description = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'libtpu knows no slice {topology}: {str(error).splitlines()[0]}') from error
    return list(description.devices)


def compile_and_measure(config: Config, mesh: Mesh, chip: Chip, clips: int) -> dict[str, Any]:
    """Compiles the target -> the report's fields on memory, FLOPs, collectives and time; few of them if out of HBM."""
    tokenizer = abstract_tokenizer(config)
    if TARGET.value == 'train':
        state = StateFactory(make_objective(config, tokenizer), make_optimizer(config.optim, config.train.steps), mesh)
        abstract = state.abstract()
        groups = {'parameters': abstract.params, 'optimizer': abstract.opt_state, 'average': abstract.ema}
        lowered = lower_train_step(config, mesh, tokenizer)
        known = {'state': {name: bytes_per_device(group) for name, group in groups.items()}}
    else:
        lowered, known = lower_next_frame(config, mesh, tokenizer, clips, FRAMES.value), {}
    print(f'compiling for {mesh.size} {chip.name} chips; large programs take minutes ...', flush=True)
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return known | {'hbm_needed': hbm_asked_for(str(error)), 'compiler': str(error).splitlines()[0]}
    known['compile_seconds'] = time.perf_counter() - started
    footprint = read_program(compiled)
    known |= {'hbm_needed': footprint.needed, 'seconds': footprint.seconds(chip)}
    return known | dataclasses.asdict(footprint)


def analytic_flops(config: Config, clips: float) -> dict[str, float]:
    """FLOPs of the model itself for so many clips, by component; none for an autoencoder."""
    tokenizer = abstract_tokenizer(config)
    if tokenizer is None:
        return {}
    shape = clip_shape(config, tokenizer)
    if TARGET.value == 'train':
        flops = train_flops(config.model, shape) | {'tokenizer': encoder_flops(config, tokenizer)}
    else:
        slots = VideoSampler(config, shape).window_size(FRAMES.value)
        flops = frame_flops(config.model, config.sampler, shape, slots)
    return {name: clips * count for name, count in flops.items()}


def ways_out(config: Config, chip: Chip, report: dict[str, Any]) -> list[str]:
    """What to change when a program does not fit."""
    found, policies = [], typing.get_args(typing.get_type_hints(TrainConfig)['remat'])
    stronger = policies[policies.index(config.train.remat) + 1 :]
    if report['target'] == 'train' and stronger:
        found.append(f'--config.train.remat={stronger[0]}: recomputes more, keeps less')
    if report['hbm_needed'] is not None:
        larger = smallest_slice(chip, report['chips'], report['hbm_needed'])
        found.append(
            f'--topology {larger}: by arithmetic, if everything is divided over its chips'
            if larger
            else f'no slice of {chip.name} is large enough, by arithmetic: fewer clips at once, or other chips'
        )
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The report as a person reads it."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in report['mesh'].items())
    clips = f'{report["clips"]} clips, remat {report["remat"]}'
    text = [f'{report["target"]} on {report["topology"]}: mesh {mesh}, {clips}']
    needed = 'an unknown amount' if report['hbm_needed'] is None else size(report['hbm_needed'])
    verdict = 'fits' if report['fits'] else 'DOES NOT FIT'
    text.append(f'{verdict}: {needed} of {size(report["hbm_available"])} HBM a chip')
    if 'state' in report:
        text.append(f'  state        {sizes(report["state"])}, part of the arguments')
    if 'memory' in report:
        text += measured_lines(report)
    else:
        text.append(f'  the compiler: {report["compiler"]}')
    return text + [f'  way out      {way}' for way in report.get('ways_out', [])]


def measured_lines(report: dict[str, Any]) -> list[str]:
    """The part of the report that only a program that was compiled has."""
    text = [f'  HBM          {sizes(report["memory"])}']
    analytic = sum(report['analytic_flops'].values())
    shares = ', '.join(f'{name} {count / analytic:.1%}' for name, count in report['analytic_flops'].items())
    ratio = f' = {report["flops"] / analytic:.3f} x {analytic:.4g} of the model itself ({shares})' if analytic else ''
    text.append(f'  FLOPs        {report["flops"]:.4g} compiled a chip{ratio}')
    for kind, cost in report['collectives'].items():
        text.append(f'  {kind:<12} {cost["count"]} times, {size(cost["bytes"])} sent by a chip')
    seconds = report['seconds']
    bound = max(seconds[name] for name in ('compute', 'hbm', 'ici'))
    moved = report['move_cycles'] / max(1, report['cycles'])
    text += [
        '  time         an ESTIMATE, nothing was measured:',
        f'    at peak rates at least {bound:.3g} s: the largest of compute {seconds["compute"]:.3g} s,'
        f' HBM {seconds["hbm"]:.3g} s, ICI {seconds["ici"]:.3g} s',
        f'    the cycles that the compiler expects, without collectives: {seconds["cycles"]:.3g} s,'
        f' {moved:.0%} of it copies and slices',
    ]
    if report['unknown_loops']:
        text.append(f'  counted once {", ".join(report["unknown_loops"])}: loops of unknown length')
    return [*text, f'  compiled in  {report["compile_seconds"]:.0f} s']


def sizes(kinds: dict[str, float]) -> str:
    """'arguments 1.20 GiB, output ...'."""
    return ', '.join(f'{kind} {size(count)}' for kind, count in kinds.items())


def size(count: float) -> str:
    """Bytes in GiB, or MiB where that is clearer."""
    return f'{count / 2**30:.2f} GiB' if count >= 2**29 else f'{count / 2**20:.3g} MiB'


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'topology'])
    console.run(main)
