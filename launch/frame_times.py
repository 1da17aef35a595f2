"""Times the n-th frame of a video: with a sliding window, with all frames cached, and without a cache.

python -m launch.frame_times --config configs/quickstart.py --out runs/frame_times

Weights are random and no video is decoded. The times are of the sampler alone, for data.batch_size clips on one device.
"""

import json
from pathlib import Path

import jax
from absl import flags

from magi_jax.benchmarks import frame_times
from magi_jax.evaluation import charts, report

from . import console
from .config_flag import define_config

CONFIG = define_config()
OUT = console.define_path('out', None, 'folder for frame_times.json and frame_times.html')
LENGTHS = flags.DEFINE_multi_integer(
    'frames',
    [16, 32, 64, 128],
    'number n of the frame to time, from 1; repeatable',
    lower_bound=frame_times.AVERAGED + 1,
)
REPEATS = flags.DEFINE_integer('repeats', 3, 'repeats of each measurement; the median is reported', lower_bound=1)


def main() -> None:
    """Measure the times, print the table and write JSON and HTML."""
    folder = Path(OUT.value)
    files = folder / 'frame_times.html', folder / 'frame_times.json'
    console.check_new(*files)
    config, lengths = console.read_config(CONFIG), sorted(LENGTHS.value)
    times = frame_times.measure(config, lengths, REPEATS.value)
    headings = [f'{config.data.batch_size} clips, ms', *(f'frame {length}' for length in lengths)]
    rows = [[name, *(f'{1e3 * seconds:.1f}' for seconds in by_frame.values())] for name, by_frame in times.items()]
    lines = {name: [(n, 1e3 * seconds) for n, seconds in by_frame.items()] for name, by_frame in times.items()}
    chart = charts.line_chart('Time per frame', ('frame', 'ms'), lines, logarithmic=True)
    facts = {'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
    summary = f'{config.sampler.mask_steps} mask steps of {config.sampler.denoise_steps} denoise steps each.'
    content = {'charts': [chart], 'table': (headings, rows)}
    page = report.render_page('frame_times', 'Time per frame', summary, facts, times, **content)
    report.write_page(files[0], page)
    files[1].write_text(json.dumps({'facts': facts, 'seconds': times}, indent=1) + '\n')
    print(f'{report.markdown_table(headings, rows)}\n\npage: {files[0]}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'out'])
    console.run(main)
