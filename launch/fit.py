"""Finds the TPU compiler for `launch.compile`, and formats its report."""

import importlib.util
import os
import typing
from typing import Any

import jax
from jax.experimental import topologies

from magi_jax.config import Config, ConfigError, TrainConfig
from magi_jax.parallel.chips import Chip, parse_topology
from magi_jax.parallel.footprint import smallest_slice

# libtpu must not search for a TPU, ask for the position of this machine in a slice, or take its lock.
ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}


def topology_devices(topology: str) -> list[jax.Device]:
    """Return device descriptions of a TPU slice. No TPU is needed.

    Raises:
      ConfigError: libtpu is not installed, or it does not know the slice.
    """
    if importlib.util.find_spec('libtpu') is None:
        raise ConfigError(f'launch.compile needs the TPU compiler: pip install "jax[tpu]=={jax.__version__}"')
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)  # the cache cannot restore programs of absent devices
    options = {'chip_config_name': 'megacore'} if topology.startswith('v4') else {}  # one device per chip, as on v5p
    if parse_topology(topology)[1] == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)  # the default is four chips per host
    try:
        description = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'libtpu does not know the slice {topology}: {str(error).splitlines()[0]}') from error
    return list(description.devices)


def suggestions(config: Config, chip: Chip, report: dict[str, Any]) -> list[str]:
    """Return suggestions that make a program fit."""
    found, policies = [], typing.get_args(typing.get_type_hints(TrainConfig)['remat'])
    stronger = policies[policies.index(config.train.remat) + 1 :]
    if report['target'] == 'train' and stronger:
        found.append(f'--config.train.remat={stronger[0]}: recompute more and store less')
    if report['hbm_needed'] is not None:
        larger = smallest_slice(chip, report['chips'], report['hbm_needed'])
        found.append(
            f'--topology {larger}: large enough by arithmetic, if all memory is divided over its chips'
            if larger
            else f'no slice of {chip.name} is large enough by arithmetic: use fewer clips at once or other chips'
        )
    return found


def format_report(report: dict[str, Any]) -> list[str]:
    """Format the whole report as lines of text."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in report['mesh'].items())
    clips = f'{report["clips"]} clips, remat {report["remat"]}'
    text = [f'{report["target"]} on {report["topology"]}: mesh {mesh}, {clips}']
    needed = 'an unknown amount' if report['hbm_needed'] is None else format_bytes(report['hbm_needed'])
    verdict = 'fits' if report['fits'] else 'DOES NOT FIT'
    text.append(f'{verdict}: {needed} of {format_bytes(report["hbm_available"])} HBM per chip')
    if 'state' in report:
        text.append(f'  state        {format_sizes(report["state"])}, part of the arguments')
    if 'memory' in report:
        text += format_measurements(report)
    else:
        text.append(f'  the compiler: {report["compiler"]}')
    return text + [f'  suggestion   {suggestion}' for suggestion in report.get('suggestions', [])]


def format_measurements(report: dict[str, Any]) -> list[str]:
    """Format the part of the report that exists only for a compiled program."""
    text = [f'  HBM          {format_sizes(report["memory"])}']
    analytic = sum(report['analytic_flops'].values())
    shares = ', '.join(f'{name} {count / analytic:.1%}' for name, count in report['analytic_flops'].items())
    ratio = f' = {report["flops"] / analytic:.3f} x {analytic:.4g} of the model itself ({shares})' if analytic else ''
    text.append(f'  FLOPs        {report["flops"]:.4g} compiled per chip{ratio}')
    if kernels := report.get('kernel_flops'):
        text.append(
            f'  of kernels   {kernels:.4g}, as the kernels state them: the compiler knows neither FLOPs nor cycles'
        )
    for kind, cost in report['collectives'].items():
        text.append(f'  {kind:<12} {cost["count"]} times, {format_bytes(cost["bytes"])} sent per chip')
    seconds = report['seconds']
    bound = max(seconds[name] for name in ('compute', 'hbm', 'ici'))
    moved = report['move_cycles'] / max(1, report['cycles'])
    text += [
        '  time         an ESTIMATE, nothing was measured:',
        f'    lower bound at peak rates {bound:.3g} s: the largest of compute {seconds["compute"]:.3g} s,'
        f' HBM {seconds["hbm"]:.3g} s, ICI {seconds["ici"]:.3g} s',
        f'    cycles estimated by the compiler, without collectives and kernels: {seconds["cycles"]:.3g} s,'
        f' {moved:.0%} of it copies and slices',
    ]
    if report['unknown_loops']:
        text.append(f'  counted once {", ".join(report["unknown_loops"])}: loops with an unknown number of iterations')
    return [*text, f'  compiled in  {report["compile_seconds"]:.0f} s']


def format_sizes(kinds: dict[str, float]) -> str:
    """Format sizes by kind: 'arguments 1.20 GiB, output ...'."""
    return ', '.join(f'{kind} {format_bytes(count)}' for kind, count in kinds.items())


def format_bytes(count: float) -> str:
    """Format bytes in GiB, or in MiB if small."""
    return f'{count / 2**30:.2f} GiB' if count >= 2**29 else f'{count / 2**20:.3g} MiB'
