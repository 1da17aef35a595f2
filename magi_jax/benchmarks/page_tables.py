"""The tables of measured numbers that stand in the pages, made from the result files beside this module.

A page marks the place of a table with `<!-- table: NAME -->` and `<!-- /table -->`; NAME is a key of TABLES.
`python -m launch.tables` writes them all.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from magi_jax.benchmarks import quality, table
from magi_jax.benchmarks.system_table import format_table
from magi_jax.config import ConfigError
from magi_jax.evaluation import study
from magi_jax.evaluation.report import markdown_table
from magi_jax.evaluation.text_steering import SteeringResult, table_rows

RESULTS = Path(__file__).with_name('results')
MARKED = re.compile(r'(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)', re.DOTALL)
GIB = 2**30


def render(text: str) -> str:
    """Return the text of a page with every marked table made anew.

    Raises:
      ConfigError: a marker names a table that does not exist.
    """
    return MARKED.sub(_filled, text)


def _filled(match: re.Match) -> str:
    if match[2] not in TABLES:
        raise ConfigError(f'table {match[2]!r} does not exist: use one of {", ".join(TABLES)}')
    return f'{match[1]}{TABLES[match[2]]()}\n{match[3]}'


def read(name: str) -> dict[str, Any]:
    """Return a result file by its name without .json."""
    return json.loads((RESULTS / f'{name}.json').read_text())


def quickstart_short() -> str:
    """Return what the quickstart reaches, for the first page."""
    run, large = read('quickstart_cpu')['runs'][0], read('study_h200')
    psnr, long = run['prediction']['psnr'], run['long']
    names = ('found by their colour', 'of the right shape', 'still moving')
    kept = [f'{long[name]["generated"][-1]:.2f}' for name in names]
    larger = [f'{large["long"][name]["generated"][-1]:.2f}' for name in names]
    head = ['', 'quickstart, 2 CPU cores', 'wider model, minutes of one H200', 'repeat last frame']
    best = f'{psnr["repeat last frame"]["mean"]:.1f} dB'
    rows = [['PSNR of 11 predicted frames', f'{psnr["generated"]["mean"]:.1f} dB', f'{large["psnr"]:.1f} dB', best]]
    rows += [[f'objects {name} after 96 frames', *pair, ''] for name, pair in zip(names, zip(kept, larger))]
    return markdown_table(head, rows)


def quickstart_prediction() -> str:
    """Return the five-frame prediction of the quickstart beside its two baselines."""
    prediction = read('quickstart_cpu')['runs'][0]['prediction']
    errors = prediction['object_centre_error']
    head = [f'{prediction["context"]} given frames, {prediction["clips"]} clips', *prediction['psnr']]
    rows = [['PSNR, mean', *(f'{psnr["mean"]:.2f} dB' for psnr in prediction['psnr'].values())]]
    for frame in ('1', '5', '11'):
        rows.append([f'PSNR, frame {frame}', *(f'{psnr[frame]:.1f} dB' for psnr in prediction['psnr'].values())])
    for frame in ('1', '5', '11'):
        cells = (f'{errors[name][frame]:.1f} px' if name in errors else '' for name in prediction['psnr'])
        rows.append([f'object-centre error, frame {frame}', *cells])
    return markdown_table(head, rows)


def quickstart_long() -> str:
    """Return how many objects of long videos stay what they are."""
    long = read('quickstart_cpu')['runs'][0]['long']
    head = [f'{long["clips"]} clips, part of all objects', *(f'frame {frame}' for frame in long['frames']), 'real']
    rows = []
    for name, values in long.items():
        if isinstance(values, dict):
            rows.append([name, *(f'{value:.2f}' for value in values['generated']), f'{values["real"]:.2f}'])
    return markdown_table(head, rows)


def quickstart_machines() -> str:
    """Return the quickstart on each machine, and the larger model."""
    result, large = read('quickstart_cpu'), read('study_h200')
    names = ('found by their colour', 'of the right shape', 'still moving')
    head = ['run', 'processor', 'time', 'PSNR', *(f'{name}, frame 96' for name in names)]
    rows = []
    for run in result['runs']:
        kept = [f'{run["long"][name]["generated"][-1]:.2f}' for name in names]
        psnr, minutes = run['prediction']['psnr']['generated']['mean'], divmod(run['seconds'], 60)
        time = f'{minutes[0]} min {minutes[1]} s'
        rows.append([f'quickstart, {run["date"]}', run['processor'], time, f'{psnr:.2f} dB', *kept])
    kept = [f'{large["long"][name]["generated"][-1]:.2f}' for name in names]
    device, time = large['device'].split('; ')
    rows.append([f'`configs/study_h200.py`, {large["date"]}', device, time, f'{large["psnr"]:.1f} dB', *kept])
    return markdown_table(head, rows)


def tokenizers() -> str:
    """Return how far the tokenizers' reconstructions lie from real clips."""
    result = read('tokenizers')
    head = ['tokenizer', 'channels', 'PSNR', 'distance', 'times real clips, 1,024 clips', 'training']
    rows = [['real clips', '', '', f'{result["real"]:.1f}', '1', '']]
    for one in result['tokenizers']:
        ratios = ', '.join(f'{ratio:g}' for ratio in one['ratio_with_1024_clips'])
        distance = f'{one["distance"]:.1f}'
        config = f'`{one["config"]}`'
        rows.append([config, str(one['channels']), f'{one["psnr"]:.1f} dB', distance, ratios, one['training']])
    return markdown_table(head, rows)


def study_variants() -> list[study.Variant]:
    """Return the variants of the committed study."""
    variants = read('study_strategies')['variants']
    return [study.Variant(study.describe(names), runs) for names, runs in variants.items()]


def study_distances() -> str:
    """Return the distances of every variant."""
    return markdown_table(*study.cells(study_variants()))


def study_sentences() -> str:
    """Return how CTF compares with MTF, as a list."""
    variants = read('study_strategies')['variants']
    return '\n'.join(f'- {sentence}' for sentence in study.sentences(dict(zip(variants, study_variants()))))


def study_frames() -> str:
    """Return the distance of single frames of short clips: mean over the seeds, and their range."""
    frames = [frame for frame in study_variants()[0].trajectory(study.CLIPS, 'stills') if frame > 1]
    rows = []
    for variant in study_variants():
        trajectory = variant.trajectory(study.CLIPS, 'stills')
        rows.append([variant.name, str(len(variant.runs)), *(_range(trajectory[frame]) for frame in frames)])
    return markdown_table(['trained with', 'seeds', *(f'frame {frame} alone' for frame in frames)], rows)


def _range(values: Iterable[float]) -> str:
    values = list(values)
    spread = f' ({min(values):,.0f} to {max(values):,.0f})' if len(values) > 1 else ''
    return f'{statistics.mean(values):,.0f}{spread}'


def quality_short() -> str:
    """Return the settings of the sampler that the text speaks of; the fast preset in bold."""
    rows = read('quality_speed')['rows']
    chosen = [('ancestral', 16, 100, 0.5), ('ancestral', 16, 10, 0.5), ('ancestral', 8, 10, 0.5)]
    chosen += [('ancestral', 4, 10, 0.5), ('ancestral', 4, 10, 1.0), ('ancestral', 4, 5, 0.5), ('dpm++', 1, 5, 0.5)]
    fields = ('solver', 'mask_steps', 'denoise_steps', 'temperature')
    by_setting = {tuple(row['sampler'][name] for name in fields): row for row in reversed(rows)}
    fast, found = quality.fast_preset(rows), []
    for row in (by_setting[setting] for setting in chosen):
        sampler, mark = row['sampler'], '**' if row is fast else ''
        steps = f'{sampler["mask_steps"]} x {sampler["denoise_steps"]}'
        cells = [f'{mark}{sampler["solver"]}{mark}', steps, f'{sampler["temperature"]:g}']
        cells += [f'{quality.mean(row, name):.{1 if name == "psnr" else 2}f}' for name in quality.MEASURES]
        found.append([*cells, f'{1000 * row["seconds_a_frame"]:,.0f}'])
    head = ['solver', 'mask x denoise steps', 'temperature', 'PSNR dB', *quality.MEASURES[1:], 'CPU ms a frame']
    return markdown_table(head, found)


def quality_all() -> str:
    """Return all settings of the sampler that were measured."""
    return quality.table(read('quality_speed')['rows'])


def frame_times() -> str:
    """Return the time of the n-th frame, with and without a cache."""
    times = read('frame_times_cpu')['seconds']
    head = ['ms a frame, 4 clips', *(f'frame {frame}' for frame in next(iter(times.values())))]
    return markdown_table(head, [[name, *(f'{1e3 * s:.1f}' for s in row.values())] for name, row in times.items()])


def torch_cpu() -> str:
    """Return the train step and the sampled frame beside PyTorch on a CPU."""
    lines = {
        'train_cpu_4x16_width96_float32': 'one optimizer step, 16 frames',
        'train_cpu_4x16_width256_float32': 'the same, width 256, 6 blocks, `train.unroll=6`',
        'sample_cpu_4x8_width96_float32': 'a sampled frame, of 8',
        'sample_cpu_4x8_width256_float32': 'the same, width 256, 6 blocks',
    }
    rows = []
    for name, words in lines.items():
        result = read(name)
        found, calls = table.summary(result), 1 if result['task'] == 'train' else result['frames']
        cells = []
        for number, row in enumerate(found.values()):
            ms = [f'{1e3 * row[key] / calls:,.4g}' for key in ('seconds', 'fastest', 'slowest')]
            more = f'{ms[1]} to {ms[2]}' if number == 0 else f'{row["ratio"]:.2f}x'
            cells.append(f'{ms[0]} ms ({more})')
        rows.append([words, *cells])
    return markdown_table(["the quickstart's model, 4 clips", *found], rows)


def h200() -> str:
    """Return the paper's model on an H200 beside PyTorch, by the first timing of each kind and number of clips."""
    result = read('h200_paper_model')
    rows = []
    for kind, words in (('train', 'one optimizer step, 16 frames'), ('sample', 'a sampled frame')):
        first: dict[tuple[int, str], float] = {}
        for row in result[kind]:
            first.setdefault((row['clips'], row['implementation'].split(',')[0]), statistics.median(row['ms']))
        for (clips, name), ms in first.items():
            if name == 'JAX' and (other := first.get((clips, 'PyTorch compiled'))):
                rows.append([words, str(clips), f'{ms:,.0f} ms', f'{other:,.0f} ms', f'{other / ms:.2f}x'])
    return markdown_table(['what', 'clips', 'JAX', 'PyTorch compiled', 'JAX is faster by'], rows)


def h200_all() -> str:
    """Return every timing of the paper's model on an H200."""
    result = read('h200_paper_model')
    rows = []
    for kind, unit in (('train', 'optimizer step'), ('sample', 'sampled frame')):
        for row in result[kind]:
            how = ', '.join(f'`{key}={row[key]}`' for key in ('remat', 'unroll') if key in row)
            ms, memory = statistics.median(row['ms']), f'{row["device_gib"]:.1f} GiB'
            rate = row['flops'] / ms * 1e3 / 1e12
            cells = [unit, row['implementation'], str(row['clips']), row.get('run', ''), how]
            rows.append([*cells, f'{ms:,.0f} ms', f'{rate:,.0f}', memory])
    head = ['what', 'implementation', 'clips', 'run', 'settings', 'median', 'TFLOP/s of the model', 'memory']
    return markdown_table(head, rows)


COMPILED = ['slice', 'mesh', 'HBM a chip', 'FLOPs, compiled / model', 'all-gather', 'reduce-scatter', 'all-reduce']
COMPILED += ['all-to-all', 'time at peak rates', "time by the compiler's cycles", 'copies']


def compiled_steps() -> str:
    """Return memory, traffic and estimated time of the compiled train steps."""
    rows = []
    for config in ('ucf101', 'kinetics600'):
        for topology in ('v5e_4x4', 'v6e_4x4', 'v5p_2x2x4', 'v5e_16x16'):
            rows.append([config, *_compiled(read(f'compile/train_{topology}_{config}'))])
    return markdown_table(['config', *COMPILED], rows)


def compiled_videomar() -> str:
    """Return memory, traffic and estimated time of VideoMAR's compiled train steps, and the part of its kernels."""
    rows = []
    for path in sorted((RESULTS / 'compile').glob('train_*_videomar_*.json')):
        report, size = json.loads(path.read_text()), path.stem.rpartition('_')[2]
        settings = f'`{report["remat"]}`', f'{report["clips"] // report["chips"] // report["accumulate"]}'
        rows.append([size.replace('x', ' x '), *settings, *_compiled(report)])
    return markdown_table(['frames', 'remat', 'clips a chip at once', *COMPILED], rows)


def _compiled(report: dict[str, Any]) -> list[str]:
    mesh = ' x '.join(f'{axis} {size}' for axis, size in report['mesh'].items() if size > 1)
    seconds, sent = report['seconds'], report['collectives']
    bound = max(seconds[name] for name in ('compute', 'hbm', 'ici'))
    kinds = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all')
    return [
        report['topology'],
        mesh,
        f'{report["hbm_needed"] / GIB:.1f} of {report["hbm_available"] / GIB:.2f} GiB',
        f'{report["flops"] / sum(report["analytic_flops"].values()):.2f}',
        *(f'{sent[kind]["bytes"] / GIB:.1f} GiB' if kind in sent else '' for kind in kinds),
        f'{bound:.2g} s',
        f'{seconds["cycles"]:.2f} s',
        f'{report["move_cycles"] / report["cycles"]:.0%}',
    ]


def captions_text() -> str:
    """Return how often videos show what their captions name."""
    return markdown_table(*table_rows(SteeringResult(**read('captions_text_cpu')['text_steering'])))


def compare_systems() -> str:
    """Return MAGI and VideoMAR on equal terms."""
    return format_table(read('systems_cpu')['systems'])


TABLES: dict[str, Callable[[], str]] = {
    'quickstart-short': quickstart_short,
    'quickstart-prediction': quickstart_prediction,
    'quickstart-long': quickstart_long,
    'quickstart-machines': quickstart_machines,
    'tokenizers': tokenizers,
    'study-distances': study_distances,
    'study-sentences': study_sentences,
    'study-frames': study_frames,
    'quality-short': quality_short,
    'quality-all': quality_all,
    'frame-times': frame_times,
    'torch-cpu': torch_cpu,
    'h200': h200,
    'h200-all': h200_all,
    'compiled-steps': compiled_steps,
    'compiled-videomar': compiled_videomar,
    'captions-text': captions_text,
    'compare-systems': compare_systems,
}
