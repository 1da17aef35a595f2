"""The training loop, read top-down: it turns config and work folder into checkpoints, metrics and preview videos.

Every host runs it and calls the same collectives in the same order. `Console` and `MetricWriter` write on the first
host only.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from magi_jax.checkpoint import Checkpoints, latest_step, save_config
from magi_jax.config import Config, ConfigError
from magi_jax.config_checks import check_config
from magi_jax.data.latents import describe
from magi_jax.data.pipeline import train_batches
from magi_jax.data.texts import describe_encoder
from magi_jax.objectives.api import make_objective
from magi_jax.parallel import hosts
from magi_jax.parallel.mesh import check_batch, make_mesh, put_batch
from magi_jax.text_encoders.api import keep_description
from magi_jax.tokenizers.api import Tokenizer, fingerprint
from magi_jax.tokenizers.folder import load_tokenizer, open_tokenizer
from magi_jax.training import hooks, spikes
from magi_jax.training.lowering import lower_train_step
from magi_jax.training.metrics import MetricWriter, StepRate
from magi_jax.training.optim import learning_rate_schedule, make_optimizer
from magi_jax.training.state import StateFactory, TrainState
from magi_jax.training.step import EvalStep, TrainStep, leaf_names, make_eval_step
from magi_jax.training.stop import StopSignals
from magi_jax.training.workdir_lock import locked

TOKENIZER_FOLDER = 'tokenizer'
COMPILATION_TIME = 'a small model takes about 15 to 60 s on an idle CPU, a large one minutes; the next start is quicker'
INIT = 2  # key for initialization, beside those in training/step.py


class Console(Protocol):
    """Output to the terminal; `launch/` implements it."""

    def line(self, text: str) -> None:
        """Print a line."""

    def progress(self, initial: int, total: int) -> Any:
        """Return a progress bar with `update(n)`, `set_postfix(**values)` and `close()`."""


class NonFiniteError(FloatingPointError):
    """The loss or a gradient is not finite. The message names the step and the first bad leaf."""


@dataclasses.dataclass
class Run:
    """All parts of a run, ready for its next step."""

    config: Config
    workdir: Path
    mesh: Mesh
    tokenizer: Tokenizer | None
    checkpoints: Checkpoints
    state: TrainState
    batches: Iterator[dict[str, np.ndarray]]
    validation: hooks.Validation
    train_step: TrainStep
    eval_step: EvalStep
    console: Console


def train(config: Config, workdir: str, console: Console, parameter_table: bool = False) -> bool:
    """Train until `config.train.steps`, and resume from the newest checkpoint of `workdir` if there is one.

    Args:
      config: config of the run.
      workdir: work folder; only one process, or one group of hosts, may train in it at a time.
      console: output for progress.
      parameter_table: True to print every parameter with its shape, not only their number.

    Returns:
      True if the run is complete; False if SIGTERM or SIGINT on any host stopped it after a checkpoint.

    Raises:
      ConfigError: the config does not match the devices, the data, the tokenizer or the work folder.
      NonFiniteError: training diverged; the last checkpoint is older and finite.
    """
    check_config(config)
    with locked(Path(workdir)):
        save_config(workdir, config)
        if hosts.broadcast_from_first_host(_is_complete(config, Path(workdir))):
            console.line(f'{workdir} is complete: {config.train.steps} steps')
            return True
        run = prepare(config, Path(workdir), console, parameter_table)
        step = int(run.state.step)
        writer = MetricWriter(workdir, resume_step=step)
        writer.text(step, 'config', json.dumps(dataclasses.asdict(config), indent=1))
        closing = contextlib.closing
        with run.checkpoints, closing(writer), closing(run.batches), StopSignals(run.mesh) as stop:
            _run_steps(run, writer, stop)
        complete = int(run.state.step) >= config.train.steps
        if complete and config.objective == 'autoencoder':
            hooks.export_tokenizer(config, run.state.ema, run.workdir / TOKENIZER_FOLDER)
        return complete


def _is_complete(config: Config, workdir: Path) -> bool:
    step = latest_step(workdir)
    exported = config.objective != 'autoencoder' or (workdir / TOKENIZER_FOLDER).exists()
    return step is not None and step >= config.train.steps and exported


def prepare(config: Config, workdir: Path, console: Console, parameter_table: bool = False) -> Run:
    """Prepare a run: mesh, tokenizer, fresh or restored state, data and compiled steps."""
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.data.batch_size, config.optim.accumulate)
    tokenizer = _frozen_tokenizer(config, workdir)
    _check_latents(config, tokenizer)
    objective = make_objective(config, tokenizer)
    optimizer = make_optimizer(config.optim, config.train.steps)
    factory = StateFactory(objective, optimizer, mesh)
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, console.line)
    if checkpoints.latest_step() is None:
        state = factory.init(jax.random.fold_in(jax.random.key(config.seed), INIT))
    else:
        state = TrainState.from_items(checkpoints.restore(factory.abstract().items()))
        console.line(f'resuming from the checkpoint of step {int(state.step)} in {workdir}')
    console.line(_parameters(state.params, parameter_table))
    # Data are opened before the long compilation, so that mistakes in them are reported at once.
    rows = hosts.host_rows(mesh, config.data.batch_size)
    batches = train_batches(config.data, config.seed, int(state.step), rows, config.text)
    validation = hooks.read_validation(config, mesh)
    if config.text.encoder and jax.process_index() == 0:
        keep_description(workdir, describe_encoder(config.data, config.text))
    eval_step = jax.jit(make_eval_step(objective, config, mesh))
    train_step = _compile(tokenizer, config, mesh, console)
    tokenizer = hosts.replicate(mesh, tokenizer)
    hosts.barrier('train step compiled')
    return Run(
        config, workdir, mesh, tokenizer, checkpoints, state, batches, validation, train_step, eval_step, console
    )


def _parameters(params: Any, table: bool) -> str:
    """Return the number of parameters as text, or a table of all of them."""
    if table:
        return parameter_overview.get_parameter_overview(params, include_stats=False)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return f'{sum(sizes):,} parameters in {len(sizes)} arrays: --parameters lists them'


def _frozen_tokenizer(config: Config, workdir: Path) -> Tokenizer | None:
    """Load the generator's tokenizer from the work folder.

    The first start copies it there, so that the latents of a run never change.
    """
    if config.objective == 'autoencoder':
        return None
    saved = workdir / TOKENIZER_FOLDER
    if config.tokenizer.kind == 'identity' or not saved.exists():
        tokenizer = open_tokenizer(config.tokenizer, config.data.height, config.data.width)
        if config.tokenizer.kind == 'identity':
            return tokenizer
    if jax.process_index() == 0 and not saved.exists():
        draft = saved.with_name(f'.{TOKENIZER_FOLDER}.draft')
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(config.tokenizer.path, draft)
        draft.rename(saved)
    hosts.barrier('tokenizer copied')
    tokenizer, path = load_tokenizer(saved), config.tokenizer.path
    if path and Path(path).exists() and fingerprint(load_tokenizer(path)) != fingerprint(tokenizer):
        raise ConfigError(f'{workdir} was started with another tokenizer than {path}: use another --workdir')
    return tokenizer


def _check_latents(config: Config, tokenizer: Tokenizer | None) -> None:
    """Raise ConfigError if `config.data` names latents of another tokenizer."""
    described, source = describe(config.data), config.data.source
    if described is None:
        return
    if tokenizer is None:
        raise ConfigError(f'{source} holds latents: train an autoencoder on its videos, {described.source}')
    if described.fingerprint != fingerprint(tokenizer):
        raise ConfigError(
            f'{source} holds latents of another tokenizer or of other statistics: run launch.encode_latents again'
        )


def _compile(tokenizer: Tokenizer | None, config: Config, mesh: Mesh, console: Console) -> TrainStep:
    """Compile the training step before the first batch, and report its memory and FLOPs."""
    devices = f'{mesh.size} {jax.devices()[0].device_kind} device(s)'
    console.line(f'compiling the training step for {devices}: {COMPILATION_TIME}')
    started = time.perf_counter()
    compiled = lower_train_step(config, mesh, tokenizer).compile()
    seconds = time.perf_counter() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = f'train step on {devices}, compiled in {seconds:.0f} s'
    if memory is not None:
        text += (
            f'; per device {memory.argument_size_in_bytes / 2**20:.0f} MiB arguments,'
            f' {memory.temp_size_in_bytes / 2**20:.0f} MiB temporary'
        )
    console.line(f'{text}; {cost.get("flops", float("nan")) / 1e9:.1f} GFLOP (scanned layers are counted once)')
    return compiled


def _run_steps(run: Run, writer: MetricWriter, stop: StopSignals) -> None:
    """Run the optimizer steps, with logging, validation, previews and checkpoints on their schedules."""
    schedule, names, rate = run.config.train, leaf_names(run.state.params), StepRate()
    step, pending, metrics = int(run.state.step), [], None
    saved, losses = step if step else None, []
    bar = run.console.progress(step, schedule.steps)
    while step < schedule.steps and not stop.requested():
        previous = metrics
        run.state, metrics = run.train_step(run.state, run.tokenizer, put_batch(run.mesh, next(run.batches)))
        step += 1
        if previous is not None:  # checked one step late, so that devices never wait for the check
            _check_finite(previous, step - 1, names)
        pending.append(metrics)
        if step % schedule.log_every == 0 or step == schedule.steps:
            _check_finite(metrics, step, names)
            values = _log(run.config, writer, step, pending, rate.per_second(len(pending)))
            pending = []
            losses = [*losses[-spikes.WINDOW :], values['train/loss']]
            if message := spikes.spike_message(losses, step, values['train/grad_norm']):
                run.console.line(message)
            bar.set_postfix(loss=f'{losses[-1]:.4f}')
        bar.update(1)
        with rate.paused():
            if step % schedule.eval_every == 0 or step == schedule.steps:
                batches = (put_batch(run.mesh, batch) for batch in run.validation.batches)
                results = [run.eval_step(run.state.ema, run.tokenizer, batch) for batch in batches]
                writer.scalars(step, hooks.mean_metrics(results, 'validation/'))
            if step % schedule.sample_every == 0:
                _write_preview(run, writer, step)
            if step % schedule.checkpoint_every == 0 and step < schedule.steps:
                _check_finite(metrics, step, names)
                run.checkpoints.save(step, run.state.items())
                saved = step
    bar.close()
    if saved != step:
        if metrics is not None:
            _check_finite(metrics, step, names)
        run.checkpoints.save(step, run.state.items())
    run.checkpoints.wait()


def _log(
    config: Config, writer: MetricWriter, step: int, metrics: list[dict[str, jax.Array]], rate: float
) -> dict[str, float]:
    """Write and return means of the steps since the last log, the learning rate of `step` and the step rate."""
    values = hooks.mean_metrics(metrics, 'train/')
    learning_rate = learning_rate_schedule(config.optim, config.train.steps)(step - 1)
    values |= {'train/learning_rate': float(learning_rate), 'train/steps_per_second': rate}
    writer.scalars(step, {name: value for name, value in values.items() if name != 'train/bad_leaf'})
    return values


def _check_finite(metrics: dict[str, jax.Array], step: int, names: list[str]) -> None:
    bad = int(metrics['bad_leaf'])
    if bad >= 0:
        raise NonFiniteError(
            f'step {step}: {names[bad]} is not finite, the checkpoints of earlier steps are intact:'
            ' lower optim.learning_rate or raise optim.warmup_steps, then run again'
        )


def _write_preview(run: Run, writer: MetricWriter, step: int) -> None:
    video = hooks.preview(run.config, run.mesh, run.state.ema, run.tokenizer, run.validation.preview)
    writer.video(step, 'preview', video, fps=8)
