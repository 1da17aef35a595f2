"""The model card of shared weights: README.md with the header that the Hugging Face Hub reads."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from magi_jax.config import Config

PAPER = '2501.12389'
TAGS = ('magi_jax', 'jax', 'flax', 'video-generation', 'video-prediction', 'autoregressive', f'arxiv:{PAPER}')
# Keys of a metrics.json whose values are settings, curves or paths instead of results.
NOT_RESULTS = {'settings', 'extractor', 'run', 'curves', 'curve', 'stills', 'pixels', 'draws', 'passes', 'clips'}


def model_card(config: Config, facts: Mapping[str, Any], name: str, license: str) -> str:
    """Return the text of README.md.

    Args:
      config: config of the run.
      facts: result of `folder.read_facts`, and the number of parameters.
      name: name of the Hub repository or folder, as `magi_jax.load` takes it.
      license: Hub identifier of the licence of the weights; 'unknown' if there is none.
    """
    parts = [_header(license), _introduction(config, name), _use(config, name), _table(_training(config, facts))]
    parts += list(_results(facts))
    if license == 'unknown':
        parts.append('These weights have no stated licence: ask their author before you use them.')
    settings = json.dumps(dataclasses.asdict(config), indent=1)
    parts.append(f'<details><summary>config.json</summary>\n\n```json\n{settings}\n```\n\n</details>')
    return '\n\n'.join(parts) + '\n'


def scalar_results(metrics: Any) -> dict[str, dict[str, float]]:
    """Reduce a metrics.json of `launch.evaluate` to its numbers: {protocol: {name: value}}."""
    results = {}
    for result in metrics if isinstance(metrics, list) else [metrics]:
        numbers = dict(_numbers(result, ''))
        if numbers:
            results[str(result.get('protocol', 'metrics'))] = numbers
    return results


def _header(license: str) -> str:
    tags = '\n'.join(f'- {tag}' for tag in TAGS)
    return (
        f'---\nlibrary_name: magi_jax\nlicense: {json.dumps(license)}\npipeline_tag: video-to-video\ntags:\n{tags}\n---'
    )


def _introduction(config: Config, name: str) -> str:
    data = config.data
    return (
        f'# {name}\n\n'
        f'MAGI ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})) in JAX: masked autoregressive video generation, trained'
        f' on `{data.source}`. The model continues videos of {data.height}x{data.width} pixels frame by frame,'
        ' or generates them without context. The weights are the EMA parameters of the run, in float32.'
    )


def _use(config: Config, name: str) -> str:
    frames = 2 * config.data.frames
    return (
        '```python\n'
        'import magi_jax\n\n'
        f'generator = magi_jax.load({name!r})\n'
        f'video = generator.sample(frames={frames}, num=4, seed=0)'
        f'  # uint8 [4, {frames}, {config.data.height}, {config.data.width}, 3]\n'
        "magi_jax.save_video('videos.mp4', video)\n"
        '```\n\n'
        '```bash\n'
        f'python -m launch.sample --workdir {name} --frames {frames} --num 4 --out videos\n'
        '```'
    )


def _training(config: Config, facts: Mapping[str, Any]) -> dict[str, str]:
    data, model, optim = config.data, config.model, config.optim
    rows = {
        'parameters': f'{facts["parameters"]:,}',
        'model': f'{model.blocks} blocks of width {model.width}, teacher forcing: {model.teacher_forcing}',
        'tokenizer': f'{config.tokenizer.kind}, {config.tokenizer.channels} channels, 1/{config.tokenizer.downsample}',
        'data': f'{data.source}, split {data.train_split}',
        'clips': f'{data.frames} frames of {data.height}x{data.width}, frame interval 1 to {data.max_interval}',
        'steps': f'{facts["step"]:,} of {config.train.steps:,}, batch size {data.batch_size}',
        'optimizer': f'{optim.name}, learning rate {optim.learning_rate:g}, EMA decay {optim.ema_decay:g}',
        'compute dtype': config.train.compute_dtype,
        'versions': ', '.join(f'{package} {version}' for package, version in facts['versions'].items()),
    }
    return rows | {f'last {name}': f'{value:.4g}' for name, value in facts.get('losses', {}).items()}


def _results(facts: Mapping[str, Any]) -> Iterator[str]:
    for protocol, numbers in facts.get('metrics', {}).items():
        yield f'## Results: {protocol}\n\n{_table({name: f"{value:.4g}" for name, value in numbers.items()})}'


def _table(rows: Mapping[str, str]) -> str:
    return '\n'.join(['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in rows.items())])


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yield (dotted name, value) of every number below `value`, without `NOT_RESULTS` and lists."""
    if isinstance(value, dict):
        for key in value:
            if key not in NOT_RESULTS:
                yield from _numbers(value[key], f'{name}.{key}' if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name.removeprefix('numbers.'), float(value)
