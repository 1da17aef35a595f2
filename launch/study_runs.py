"""The runs of a study: each is trained and measured by the commands that a person would use, and its cost noted."""

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
    """One training of a study."""

    variants: str  # of the config
    seed: int

    @property
    def folder(self) -> Path:
        """In the study's folder."""
        return Path(self.variants or 'all') / f'seed{self.seed}'


class Stopped(Exception):
    """A command of the study ended with this exit status."""


def run_all(plan: study.Plan, config: str, extra: str, root: Path) -> None:
    """Makes what is not there yet and writes the study's files after every run.

    Args:
      plan: of the study.
      config: its file.
      extra: 'runlocal' or ''.
      root: folder of all runs.

    Raises:
      Stopped: a command failed or was stopped.
    """
    runs = [Run(variants, seed) for variants, seeds in plan.runs.items() for seed in range(seeds)]
    root.mkdir(parents=True, exist_ok=True)
    execute(root, f'{__package__}.train', f'--config={plan.tokenizer}', f'--workdir={root / "autoencoder"}')
    for number, run in enumerate(runs, 1):
        print(f'\n{number}/{len(runs)}  {study.describe(run.variants)}, seed {run.seed}', flush=True)
        variants = ','.join(name for name in (run.variants, extra) if name)
        make(root, run, f'{config}:{variants}', plan.protocols.values())
        write(root, plan, runs[:number])


def make(root: Path, run: Run, config: str, protocols: Iterable[str]) -> None:
    """Trains a run and measures it under every protocol. Raises Stopped."""
    folder = root / run.folder
    tokenizer = '' if config.endswith('runlocal') else root / 'autoencoder/tokenizer'
    overrides = f'--config.seed={run.seed}', f'--config.tokenizer.path={tokenizer}'
    execute(root, f'{__package__}.train', f'--config={config}', f'--workdir={folder}', *overrides)
    for name in protocols:
        out = folder / name
        if not (out / 'report.html').exists():
            execute(root, f'{__package__}.evaluate', f'--workdir={folder}', f'--protocol={name}', f'--out={out}')


def execute(root: Path, module: str, *arguments: str) -> None:
    """Runs a command and notes the time that it took of the processor; SIGTERM is passed on. Raises Stopped."""
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
        raise Stopped(status if status > 0 else 128 - status)  # ended by a signal: as a shell would say it


def write(root: Path, plan: study.Plan, runs: list[Run]) -> None:
    """The study's files, from those of the runs that are done."""

    def results(run: Run) -> dict[str, Any]:
        files = {kind: root / run.folder / protocol / 'metrics.json' for kind, protocol in plan.protocols.items()}
        return {kind: json.loads(file.read_text()) for kind, file in files.items()}

    ways = {}
    for run in runs:
        earlier = ways[run.variants].runs if run.variants in ways else []
        ways[run.variants] = study.Way(study.describe(run.variants), [*earlier, results(run)])
    costs = [json.loads(line)['cpu_seconds'] for line in (root / COSTS).read_text().splitlines()]
    facts = {'runs': str(len(runs)), 'processor time': f'{sum(costs) / 3600:.1f} core hours'}
    data = {'facts': facts, 'ways': {variants: way.runs for variants, way in ways.items()}}
    (root / 'study.json').write_text(json.dumps(data, indent=1))
    said = [markdown_table(*study.cells(list(ways.values()))), *study.sentences(ways)]
    (root / 'study.md').write_text('\n\n'.join([*said, ', '.join(map(': '.join, facts.items()))]) + '\n')
    write_page(root / 'study.html', study.render('Teacher forcing, intervals and noise', ways, facts))
