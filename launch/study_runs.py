"""Runs a study: trains and evaluates each run with the public commands, and records its cost."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magi_jax.evaluation import study
from magi_jax.evaluation.report import markdown_table, write_page

COSTS = 'costs.jsonl'


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a study."""

    variants: str  # variants of the config, comma-separated
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the run, relative to that of the study."""
        return Path(self.variants or 'all') / f'seed{self.seed}'


class CommandFailed(Exception):
    """The exit status with which a command of the study failed."""


def run_all(plan: study.Plan, config: str, extra: str, root: Path) -> None:
    """Train and evaluate the missing runs, and write the result files of the study after every run.

    Args:
      plan: plan of the study.
      config: config file of the study.
      extra: 'runlocal' or ''.
      root: folder of the study.

    Raises:
      CommandFailed: a command failed or was stopped by a signal.
    """
    runs = [Run(variants, seed) for variants, seeds in plan.runs.items() for seed in range(seeds)]
    root.mkdir(parents=True, exist_ok=True)
    execute(root, f'{__package__}.train', f'--config={plan.tokenizer}', f'--workdir={root / "autoencoder"}')
    for number, run in enumerate(runs, 1):
        print(f'\n{number}/{len(runs)}  {study.describe(run.variants)}, seed {run.seed}', flush=True)
        variants = ','.join(name for name in (run.variants, extra) if name)
        train_and_evaluate(root, run, f'{config}:{variants}', plan.protocols.values())
        write_results(root, plan, runs[:number])


def train_and_evaluate(root: Path, run: Run, config: str, protocols: Iterable[str]) -> None:
    """Train a run and evaluate it under every protocol. Raise CommandFailed if a command fails."""
    folder = root / run.folder
    tokenizer = '' if config.endswith('runlocal') else root / 'autoencoder/tokenizer'
    overrides = f'--config.seed={run.seed}', f'--config.tokenizer.path={tokenizer}'
    execute(root, f'{__package__}.train', f'--config={config}', f'--workdir={folder}', *overrides)
    for name in protocols:
        out = folder / name
        if not (out / 'report.html').exists():
            execute(root, f'{__package__}.evaluate', f'--workdir={folder}', f'--protocol={name}', f'--out={out}')


def execute(root: Path, module: str, *arguments: str) -> None:
    """Run a command and record its processor time; forward SIGTERM to it. Raise CommandFailed if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen([sys.executable, '-m', module, *arguments]) as child:
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        status = child.wait()
        signal.signal(signal.SIGTERM, previous)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with open(root / COSTS, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'command': [module, *arguments], 'status': status, 'cpu_seconds': seconds}) + '\n')
    if status:
        raise CommandFailed(status if status > 0 else 128 - status)  # after a signal: 128 + its number, as in a shell


def write_results(root: Path, plan: study.Plan, runs: list[Run]) -> None:
    """Write the result files of the study from the finished runs."""

    def results(run: Run) -> dict[str, Any]:
        files = {kind: root / run.folder / protocol / 'metrics.json' for kind, protocol in plan.protocols.items()}
        return {kind: json.loads(file.read_text()) for kind, file in files.items()}

    variants = {}
    for run in runs:
        earlier = variants[run.variants].runs if run.variants in variants else []
        variants[run.variants] = study.Variant(study.describe(run.variants), [*earlier, results(run)])
    costs = [json.loads(line)['cpu_seconds'] for line in (root / COSTS).read_text().splitlines()]
    facts = {'runs': str(len(runs)), 'processor time': f'{sum(costs) / 3600:.1f} core hours'}
    data = {'facts': facts, 'variants': {name: variant.runs for name, variant in variants.items()}}
    (root / 'study.json').write_text(json.dumps(data, indent=1))
    text = [markdown_table(*study.cells(list(variants.values()))), *study.sentences(variants)]
    (root / 'study.md').write_text('\n\n'.join([*text, ', '.join(map(': '.join, facts.items()))]) + '\n')
    write_page(root / 'study.html', study.render('Teacher forcing, intervals and noise', variants, facts))
