"""The training loop, read top-down: config and work folder in, checkpoints, metrics and preview videos out.

Every host runs it and calls the same collectives in the same order; `Console` and `MetricWriter` speak for the first.
"""

import contextlib
import dataclasses
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
from magi_jax.data.latents import describe
from magi_jax.data.pipeline import train_batches
from magi_jax.objectives.api import make_objective
from magi_jax.parallel import hosts
from magi_jax.parallel.mesh import check_batch, make_mesh, put_batch
from magi_jax.tokenizers.api import Tokenizer, fingerprint
from magi_jax.tokenizers.folder import load_tokenizer, open_tokenizer
from magi_jax.training import hooks, spikes
from magi_jax.training.lowering import lower_train_step
from magi_jax.training.metrics import MetricWriter
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import StateFactory, TrainState
from magi_jax.training.step import EvalStep, TrainStep, leaf_names, make_eval_step
from magi_jax.training.stop import StopSignals

TOKENIZER_FOLDER = 'tokenizer'
INIT = 2  # purpose of randomness, beside those of training/step.py


class Console(Protocol):
    """Where the loop speaks to a person; `launch/` has the real one."""

    def line(self, text: str) -> None:
        """Shows a line."""

    def progress(self, initial: int, total: int) -> Any:
        """A bar with `update(n)`, `set_postfix(**values)` and `close()`."""


class NonFiniteError(FloatingPointError):
    """Loss or a gradient is not finite; the message names the step and the first bad leaf."""


@dataclasses.dataclass
class Run:
    """Everything a run is made of, ready for its next step."""

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


def train(config: Config, workdir: str, console: Console) -> bool:
    """Trains until `config.train.steps`, going on from the newest checkpoint of `workdir` if there is one.

    Returns:
      True when the run is complete; False when SIGTERM or SIGINT to any host stopped it after a checkpoint.

    Raises:
      ConfigError: the config does not fit the devices, the data, the tokenizer or the work folder.
      NonFiniteError: training diverged; the last checkpoint is from before.
    """
    save_config(workdir, config)
    if hosts.word_of_first(_is_complete(config, Path(workdir))):
        console.line(f'{workdir} is complete: {config.train.steps} steps')
        return True
    run = prepare(config, Path(workdir), console)
    writer = MetricWriter(workdir, resume_step=int(run.state.step))
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


def prepare(config: Config, workdir: Path, console: Console) -> Run:
    """Config -> mesh, tokenizer, objective, a fresh or restored, sharded state, opened data and compiled step."""
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
        console.line(f'going on from the checkpoint of step {int(state.step)} in {workdir}')
    console.line(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    # Opened before the long compilation: a mistake in the data shows at once.
    rows = hosts.host_rows(mesh, config.data.batch_size)
    batches = train_batches(config.data, config.seed, int(state.step), rows)
    validation = hooks.read_validation(config, mesh)
    eval_step = jax.jit(make_eval_step(objective, config, mesh))
    train_step = _compile(tokenizer, config, mesh, console)
    tokenizer = hosts.everywhere(mesh, tokenizer)
    hosts.meet('train step compiled')
    return Run(
        config, workdir, mesh, tokenizer, checkpoints, state, batches, validation, train_step, eval_step, console
    )


def _frozen_tokenizer(config: Config, workdir: Path) -> Tokenizer | None:
    """The generator's tokenizer, kept in the work folder from the first start on: a run never changes its latents."""
    if config.objective == 'autoencoder':
        return None
    kept = workdir / TOKENIZER_FOLDER
    if config.tokenizer.kind == 'identity' or not kept.exists():
        tokenizer = open_tokenizer(config.tokenizer, config.data.height, config.data.width)
        if config.tokenizer.kind == 'identity':
            return tokenizer
    if jax.process_index() == 0 and not kept.exists():
        draft = kept.with_name(f'.{TOKENIZER_FOLDER}.draft')
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(config.tokenizer.path, draft)
        draft.rename(kept)
    hosts.meet('tokenizer copied')
    tokenizer, path = load_tokenizer(kept), config.tokenizer.path
    if path and Path(path).exists() and fingerprint(load_tokenizer(path)) != fingerprint(tokenizer):
        raise ConfigError(f'{workdir} was started with another tokenizer than {path}; use another --workdir')
    return tokenizer


def _check_latents(config: Config, tokenizer: Tokenizer | None) -> None:
    """Raises ConfigError if `config.data` names latents that are not those of this tokenizer."""
    described, source = describe(config.data), config.data.source
    if described is None:
        return
    if tokenizer is None:
        raise ConfigError(f'{source} holds latents, an autoencoder is trained on videos: {described.source}')
    if described.fingerprint != fingerprint(tokenizer):
        raise ConfigError(f'{source} holds latents of another tokenizer, or with other statistics: encode again')


def _compile(tokenizer: Tokenizer | None, config: Config, mesh: Mesh, console: Console) -> TrainStep:
    """Compiles the step before the first batch and reports what it needs."""
    started = time.perf_counter()
    compiled = lower_train_step(config, mesh, tokenizer).compile()
    seconds = time.perf_counter() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = f'train step on {mesh.size} {jax.devices()[0].device_kind} device(s), compiled in {seconds:.0f} s'
    if memory is not None:
        text += (
            f'; per device {memory.argument_size_in_bytes / 2**20:.0f} MiB arguments,'
            f' {memory.temp_size_in_bytes / 2**20:.0f} MiB temporary'
        )
    console.line(f'{text}; {cost.get("flops", float("nan")) / 1e9:.1f} GFLOP (a scanned layer counted once)')
    return compiled


def _run_steps(run: Run, writer: MetricWriter, stop: StopSignals) -> None:
    """The steps themselves, with logging, validation, previews and checkpoints on their schedules."""
    schedule, names = run.config.train, leaf_names(run.state.params)
    step, pending, metrics = int(run.state.step), [], None
    saved, losses = step if step else None, []
    bar = run.console.progress(step, schedule.steps)
    while step < schedule.steps and not stop.asked():
        previous = metrics
        run.state, metrics = run.train_step(run.state, run.tokenizer, put_batch(run.mesh, next(run.batches)))
        step += 1
        if previous is not None:  # one step late: the devices are never left waiting for this look
            _check_finite(previous, step - 1, names)
        pending.append(metrics)
        if step % schedule.log_every == 0 or step == schedule.steps:
            _check_finite(metrics, step, names)
            values = hooks.mean_metrics(pending, 'train/')
            pending = []
            writer.scalars(step, {name: value for name, value in values.items() if name != 'train/bad_leaf'})
            losses = [*losses[-spikes.WINDOW :], values['train/loss']]
            if message := spikes.spike_message(losses, step, values['train/grad_norm']):
                run.console.line(message)
            bar.set_postfix(loss=f'{values["train/loss"]:.4f}')
        bar.update(1)
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


def _check_finite(metrics: dict[str, jax.Array], step: int, names: list[str]) -> None:
    bad = int(metrics['bad_leaf'])
    if bad >= 0:
        raise NonFiniteError(
            f'step {step}: {names[bad]} is not finite; the checkpoints in the work folder are from before.'
            ' Lower optim.learning_rate or raise optim.warmup_steps, then run again'
        )


def _write_preview(run: Run, writer: MetricWriter, step: int) -> None:
    video = hooks.preview(run.config, run.mesh, run.state.ema, run.tokenizer, run.validation.preview)
    writer.video(step, 'preview', video, fps=8)
