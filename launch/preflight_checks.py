"""The checks of `launch.preflight`, one function each.

A check returns its result as text, or raises an error whose message says what to do.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from packaging.requirements import Requirement

import magi_jax
from magi_jax.checkpoint import Checkpoints, saved_experiment
from magi_jax.config import Config, ConfigError
from magi_jax.data import sources
from magi_jax.data.pipeline import eval_batches, train_batches
from magi_jax.objectives.api import Objective, make_objective
from magi_jax.parallel.hosts import host_rows, replicate
from magi_jax.parallel.mesh import check_batch, make_mesh, put_batch, replicated_sharding
from magi_jax.tokenizers.api import Tokenizer, create_tokenizer
from magi_jax.tokenizers.folder import how_to_make, load_tokenizer
from magi_jax.training.loop import TOKENIZER_FOLDER
from magi_jax.training.lowering import lower_train_step
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory
from magi_jax.training.step import leaf_names

from .collectives import check_axis

PROBE_FOLDER = 'preflight'  # temporary folder inside the work folder
SMALL_MODEL = 50_000_000  # largest number of parameters for which `--step auto` runs steps
CLOCK_TOLERANCE = 5.0  # largest difference between the clocks of hosts, in seconds
CHECKPOINT_BYTES, CPU_CHECKPOINT_BYTES = 2**28, 2**24
SHARED_BYTES = 1024
TPU_FILES = ('/dev/accel0', '/dev/vfio/0')


@dataclasses.dataclass
class PreflightContext:
    """The inputs of the checks, and the results of earlier checks that later ones need."""

    config: Config
    workdir: Path
    requirements: Path
    step: str
    token: str = ''  # equal on all hosts, different for every start
    mesh: Mesh | None = None
    tokenizer: Tokenizer | None = None
    objective: Objective | None = None
    factory: StateFactory | None = None
    parameters: int = 0
    batch: dict[str, np.ndarray] | None = None
    clips_per_second: float = 0.0
    experiment: Config | None = None  # the config with all stages, if `config` is that of one


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of the report. `run(context)` returns its result or raises an error with a remedy."""

    name: str
    run: Callable[[PreflightContext], str]
    needs: tuple[str, ...] = ()


def check_versions(context: PreflightContext) -> str:
    """Check that every pinned package has its exact version; on TPUs also the packages of the `tpu` extra of jax."""
    pins = context.requirements.read_text()
    if jax.default_backend() == 'tpu':
        jax_requirements = importlib.metadata.requires('jax') or []
        pins += ''.join(f'\n{line.partition(";")[0]}' for line in jax_requirements if 'extra == "tpu"' in line)
    if wrong := wrong_versions(pins):
        raise ConfigError(
            f'{"; ".join(wrong[:5])}{" ..." if len(wrong) > 5 else ""}: pip install -r {context.requirements}'
        )
    return f'{len(_pinned(pins))} packages as in {context.requirements.name}, jax {jax.__version__}'


def wrong_versions(pins: str) -> list[str]:
    """Return one message for every requirement that the installed packages do not satisfy."""
    wrong = []
    for pin in _pinned(pins):
        try:
            found = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f'{pin.name} is not installed')
            continue
        if not pin.specifier.contains(found, prereleases=True):
            wrong.append(f'{pin.name} is {found}, pinned {pin.specifier}')
    return wrong


def _pinned(pins: str) -> list[Requirement]:
    """Return the requirements of a requirements file that apply to this Python and platform."""
    lines = (line.partition('#')[0].strip() for line in pins.splitlines())
    found = [Requirement(line) for line in lines if line]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


def check_hosts(context: PreflightContext) -> str:
    """Check that all processes run the same code and config, and that their clocks agree."""
    gather_text('')  # compiles the exchange and acts as a barrier, so that all hosts read their clocks at the same time
    this_host = {
        'time': time.time(),
        'config': _digest(json.dumps(dataclasses.asdict(context.config), sort_keys=True).encode()),
        'requirements': _digest(context.requirements.read_bytes()),
        'code': _digest(*(path.read_bytes() for path in _sources())),
    }
    hosts = [json.loads(text) for text in gather_text(json.dumps(this_host))]
    if differences := host_differences(hosts):
        raise ConfigError('; '.join(differences))
    context.token = repr(hosts[0]['time'])
    return f'{len(hosts)} process(es): same config, requirements and code, clocks within {CLOCK_TOLERANCE:.0f} s'


def host_differences(hosts: list[dict[str, Any]]) -> list[str]:
    """Return one message for every difference between hosts: code, config, requirements or clock."""
    differences = []
    for name in ('config', 'requirements', 'code'):
        if others := [number for number, host in enumerate(hosts) if host[name] != hosts[0][name]]:
            differences.append(
                f'hosts {others} and host 0 differ in {name}: use the same code and the same command on all hosts'
            )
    apart = max(host['time'] for host in hosts) - min(host['time'] for host in hosts)
    if apart > CLOCK_TOLERANCE:
        differences.append(f'host clocks are {apart:.0f} s apart: synchronise them with NTP (chrony, timesyncd)')
    return differences


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:16]


def _sources() -> list[Path]:
    """Return all Python files of the project, sorted."""
    folders = Path(magi_jax.__file__).parent, Path(__file__).parent
    return sorted({path for folder in folders for path in folder.rglob('*.py')})


def check_devices(context: PreflightContext) -> str:
    """Check that the devices fill the mesh of the config and that the batch divides over it."""
    if jax.default_backend() == 'cpu' and any(map(os.path.exists, TPU_FILES)) and 'JAX_PLATFORMS' not in os.environ:
        raise ConfigError(
            f'this host has TPU chips, but jax runs on the CPU: pip install "jax[tpu]=={jax.__version__}"'
        )
    config, devices, hosts = context.config, jax.devices(), jax.process_count()
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.data.batch_size, config.optim.accumulate)
    context.mesh = mesh
    axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
    return f'{len(devices)} x {devices[0].device_kind} on {hosts} process(es); mesh {axes}'


def check_collectives(context: PreflightContext) -> str:
    """Check the results of all-reduce, all-gather, reduce-scatter and all-to-all along every mesh axis."""
    axes = [axis for axis, size in context.mesh.shape.items() if size > 1]
    found = []
    for axis in axes:
        speeds = check_axis(context.mesh, axis)
        rates = ', '.join(f'{name} {speed / 1e9:.2f}' for name, speed in speeds.items())
        found.append(f'{axis}: {rates} GB/s per device')
    return '; '.join(found) or 'one device, so no collectives'


def check_workdir(context: PreflightContext) -> str:
    """Check that the work folder is writable."""
    if context.workdir.parts[0].endswith(':'):
        raise ConfigError(
            f'{context.workdir} is not a folder: mount the bucket on every host (launch/tpu/pod.sh --bucket)'
        )
    probe = context.workdir / PROBE_FOLDER
    try:
        probe.mkdir(parents=True, exist_ok=True)
        (probe / f'host{jax.process_index()}').write_text(context.token)
    except OSError as error:
        raise ConfigError(
            f'{context.workdir} cannot be written ({error.strerror}): choose another --workdir or fix its permissions'
        ) from error
    return f'{context.workdir} is writable'


def check_checkpoint(context: PreflightContext) -> str:
    """Check that hosts share the work folder, that it holds no other experiment, and that checkpoints restore."""
    probe, hosts = context.workdir / PROBE_FOLDER, range(jax.process_count())
    if missing := [host for host in hosts if not _has_content(probe / f'host{host}', context.token)]:
        raise ConfigError(
            f'files of hosts {missing} in {context.workdir} are not visible on this host: use a shared folder'
        )
    saved_experiment(context.workdir, context.experiment or context.config)
    size = CPU_CHECKPOINT_BYTES if jax.default_backend() == 'cpu' else CHECKPOINT_BYTES
    sharded = NamedSharding(context.mesh, PartitionSpec(context.mesh.axis_names))
    rows = size // 4096 // context.mesh.size * context.mesh.size
    # Random bits do not compress, so the measured speed is that of the storage.
    tree = jax.jit(
        lambda: {'sharded': jax.random.bits(jax.random.key(0), (rows, 1024), jnp.uint32), 'replicated': jnp.arange(7)},
        out_shardings={'sharded': sharded, 'replicated': replicated_sharding(context.mesh)},
    )()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    checkpoints = Checkpoints(probe, keep=1)
    times = [time.perf_counter()]
    checkpoints.save(1, {'probe': tree})
    checkpoints.wait()
    times.append(time.perf_counter())
    restored = jax.block_until_ready(checkpoints.restore({'probe': shapes})['probe'])
    times.append(time.perf_counter())
    checkpoints.close()
    if not jax.jit(lambda a, b: jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b)))))(
        tree, restored
    ):
        raise ConfigError(f'a checkpoint restored from {context.workdir} differs from the saved one: use other storage')
    write, read = (size / 1e6 / (b - a) for a, b in itertools.pairwise(times))
    return f'{_size(size)} over {context.mesh.size} device(s): written at {write:.0f} MB/s, read at {read:.0f} MB/s'


def _has_content(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def check_tokenizer(context: PreflightContext) -> str:
    """Check that the tokenizer loads and fits the clips and the model."""
    config, copy = context.config, context.workdir / TOKENIZER_FOLDER
    if config.objective == 'autoencoder':
        text = 'none: this run trains a tokenizer'
    elif config.tokenizer.kind == 'identity':
        context.tokenizer = create_tokenizer(config.tokenizer, jax.random.key(0), config.data.height, config.data.width)
        text = 'identity'
    elif not (config.tokenizer.path or copy.exists()):
        raise ConfigError(f'tokenizer.path is not set to a tokenizer folder: {how_to_make(config.tokenizer)}')
    else:
        folder = copy if copy.exists() else Path(config.tokenizer.path)
        context.tokenizer = load_tokenizer(folder)
        text = f'{folder} is complete'
    context.objective = make_objective(config, context.tokenizer)
    return text


def check_state(context: PreflightContext) -> str:
    """Check that the training state fits into device memory and its checkpoints onto the disk."""
    optimizer = make_optimizer(context.config.optim, context.config.train.steps)
    context.factory = StateFactory(context.objective, optimizer, context.mesh)
    state = context.factory.abstract()
    context.parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    leaves = jax.tree.leaves(state)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    per_device = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)
    memory = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
    if memory and per_device > memory:
        raise ConfigError(
            f'the training state needs {_size(per_device)} per device, which has {_size(memory)}: raise mesh.fsdp'
        )
    # One more than train.keep_checkpoints: the oldest checkpoint is deleted only after the newest is complete.
    needed = (context.config.train.keep_checkpoints + 1) * total - _bytes_under(context.workdir / 'checkpoints')
    free = shutil.disk_usage(context.workdir).free
    if free < needed:
        raise ConfigError(
            f'checkpoints need {_size(needed)} of disk space, but {context.workdir} has {_size(free)}: free space,'
            ' lower train.keep_checkpoints or choose another --workdir'
        )
    sizes = f'state {_size(total)}, {_size(per_device)} per device'
    return f'{context.parameters:,} parameters, {sizes}; disk: {_size(free)} free'


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def _size(size: float) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f'{size / 2**20:.1f} MiB' if size < 2**30 else f'{size / 2**30:.1f} GiB'


def check_data(context: PreflightContext) -> str:
    """Check that both splits open, and measure the clips per second of all hosts. Prefetched batches do not count."""
    data = context.config.data
    next(eval_batches(data, sources.eval_split(data), data.frames, 1, 1))
    # Without a mesh this host reads all rows. The check of devices reports the missing mesh.
    rows = context.mesh and host_rows(context.mesh, data.batch_size)
    batches = train_batches(data, context.config.seed, rows=rows)
    try:
        context.batch = next(batches)
        for _ in range(max(4, data.threads)):
            next(batches)
        count, started = 0, time.perf_counter()
        while count < 8 and (count == 0 or time.perf_counter() - started < 2):
            next(batches)
            count += 1
        context.clips_per_second = count * data.batch_size / (time.perf_counter() - started)
    finally:
        batches.close()
    return f'{data.source}: {context.clips_per_second:.0f} clips/s of {data.frames} x {data.height} x {data.width}'


def check_step(context: PreflightContext) -> str:
    """Run four optimizer steps on one batch. Check that they are finite and that the data keeps up with their speed."""
    if context.step == 'never' or (context.step == 'auto' and context.parameters > SMALL_MODEL):
        return f'not run (--step={context.step}, {context.parameters:,} parameters): run it with --step=always'
    step = lower_train_step(context.config, context.mesh, context.tokenizer).compile()
    state = context.factory.init(jax.random.key(context.config.seed))
    names = leaf_names(state.params)
    tokenizer, batch = replicate(context.mesh, context.tokenizer), put_batch(context.mesh, context.batch)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, tokenizer, batch))
        times.append(time.perf_counter() - started)
        if (bad := int(metrics['bad_leaf'])) >= 0:
            raise ConfigError(f'{names[bad]} is not finite in the first steps: lower optim.learning_rate')
    needed_rate = context.config.data.batch_size / min(times)
    slow = needed_rate > context.clips_per_second
    advice = ', more than the data delivers: raise data.threads, or the devices will be idle' if slow else ''
    return f'loss {float(metrics["loss"]):.4f}, {min(times):.3f} s per step: needs {needed_rate:.0f} clips/s{advice}'


def gather_text(text: str) -> list[str]:
    """Gather a text from every process, in process order. Only its first kilobyte is sent. It acts as a barrier."""
    if jax.process_count() == 1:
        return [text]
    block = np.frombuffer(text.encode()[:SHARED_BYTES].ljust(SHARED_BYTES, b'\0'), np.uint8)
    return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in multihost_utils.process_allgather(block)]


CHECKS = (
    Check('versions', check_versions),
    Check('hosts', check_hosts),
    Check('devices', check_devices),
    Check('collectives', check_collectives, ('devices',)),
    Check('workdir', check_workdir, ('hosts',)),
    Check('checkpoint', check_checkpoint, ('devices', 'workdir')),
    Check('tokenizer', check_tokenizer),
    Check('state', check_state, ('devices', 'workdir', 'tokenizer')),
    Check('data', check_data),
    Check('step', check_step, ('state', 'data')),
)
