"""Prepares videos for training: decodes and checks them once, and stores them as a TFDS dataset.

python -m launch.prepare_data --dataset my_videos --source FOLDER_OR_CSV
python -m launch.prepare_data --dataset ucf101/split1 --source UCF --height 256 --width 256
python -m launch.prepare_data --dataset my_videos --check

The same command resumes after an interruption. It also retries files that were missing, unreadable or too slow. To use
several hosts, start each one with its own `--shard i/n`. Then collect all parts in one folder and run `--merge`.
Exit status: 0 = done, 1 = error, 3 = too many videos were skipped or missing.
"""

import os
import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from magi_jax.config import ConfigError
from magi_jax.data import prepared
from magi_jax.data.cache import data_folder
from magi_jax.data.preparation import dataset, plans, public, rows, shards
from magi_jax.data.preparation.reencode import Settings

from . import console, dataset_commands

DATASET = flags.DEFINE_string(
    'dataset', None, 'name of the dataset: ucf101/split1, kinetics600, something_something_v2, ... or any new name'
)
SOURCE = console.define_path('source', '', 'folder of videos, or CSV file with the columns path, label, split')
DATA_DIR = console.define_path('data_dir', '', f'folder of all datasets; "" = {console.CACHE_HELP}')
HEIGHT = flags.DEFINE_integer('height', Settings.height, 'height of the stored videos, in pixels')
WIDTH = flags.DEFINE_integer('width', Settings.width, 'width of the stored videos, in pixels')
FPS = flags.DEFINE_float(
    'fps', Settings.fps, 'frame rate of the stored videos, in frames per second; 0 = that of each file'
)
MIN_FRAMES = flags.DEFINE_integer(
    'min_frames', Settings.min_frames, 'smallest number of frames; shorter videos are skipped'
)
CODEC = flags.DEFINE_string('codec', Settings.codec, 'codec: h264, or lossless for small synthetic videos')
KEYFRAMES = flags.DEFINE_integer(
    'keyframe_interval',
    Settings.keyframe_interval,
    'frames from one keyframe to the next; a smaller interval reads faster and stores more bytes',
)
PER_SHARD = flags.DEFINE_integer('videos_per_shard', Settings.videos_per_shard, 'videos in each file of the dataset')
SHARD = flags.DEFINE_string('shard', '', 'i/n: prepare only part i (from 0) of n, and do not merge')
REPLACE = flags.DEFINE_bool(
    'replace', False, 'delete an existing dataset of that name if it has other files or settings'
)
MERGE = flags.DEFINE_bool('merge', False, 'only merge the parts written with --shard')
CHECK = flags.DEFINE_bool('check', False, 'only verify a finished dataset')
PROCESSES = flags.DEFINE_integer('processes', os.cpu_count(), 'number of processes that decode and encode')
TIMEOUT = flags.DEFINE_float('timeout', 300.0, 'time limit of each video in seconds; slower ones are skipped')
MAX_SKIPPED = flags.DEFINE_float('max_skipped', 0.05, 'largest allowed fraction of unusable videos')
MAX_MISSING = flags.DEFINE_float('max_missing', 0.05, 'largest allowed fraction of listed videos without a file')

DISK_FULL = 'the disk is full: free space and run the same command again; complete shards are safe'
OVER_LIMIT = 3


def main() -> int:
    """Prepare, merge or check a dataset; return the exit status."""
    sys.stdout.reconfigure(errors='backslashreplace')  # file names may be any bytes
    name, data_dir = DATASET.value.strip('/'), DATA_DIR.value
    if CHECK.value:
        dataset_commands.check_dataset(name, data_dir, PROCESSES.value, dataset.check_videos)
        return 0
    if not MERGE.value:
        try:
            _prepare(name, data_dir)
        except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as a RuntimeError
            if not console.is_disk_full(error):
                raise
            print(f'error: {DISK_FULL}', file=sys.stderr)
            return 1
        if SHARD.value:
            return 0
    summary = dataset.merge(name, data_dir, dataset.Limits(MAX_SKIPPED.value, MAX_MISSING.value))
    folder = prepared.dataset_folder(name, data_dir)
    _report(summary, folder)
    return OVER_LIMIT if summary.over_limit else 0


def _prepare(name: str, data_dir: str) -> None:
    if not SOURCE.value:
        raise ConfigError('--source is missing: give a folder of videos or a CSV file, or --check or --merge')
    settings = Settings(
        HEIGHT.value, WIDTH.value, FPS.value, MIN_FRAMES.value, CODEC.value, KEYFRAMES.value, PER_SHARD.value
    )
    part, count = dataset_commands.parse_shard(SHARD.value)
    listing = public.list_dataset(name, SOURCE.value, lambda path: rows.is_usable(path, settings, TIMEOUT.value))
    folder, plan = dataset.make_plan(name, data_dir, listing, settings, REPLACE.value)
    if listing.warning:
        print(f'{listing.warning}, and run this command again with --replace')
    assigned = shards.make_shards(name, folder, listing, settings)[part::count]
    if listing.ignored:
        print(f'{len(listing.ignored)} other files are ignored, the first is {listing.ignored[0]}')
    with plans.exclusive_lock(folder, (part, count)):
        todo = [shard for shard in assigned if shards.remaining_rows(shard)]
        total, left = (
            sum(len(shard.rows) for shard in assigned),
            sum(len(shards.remaining_rows(shard)) for shard in todo),
        )
        done = dataset.prepare(todo, plan, listing.root, PROCESSES.value, TIMEOUT.value)
        with tqdm(initial=total - left, total=total, unit='video', dynamic_ncols=True, smoothing=0.05) as bar:
            skipped = 0
            for skip in done:
                bar.update()
                if skip:
                    skipped += 1
                    bar.set_postfix_str(f'{skipped} skipped', refresh=False)
                    bar.write(f'skipped ({skip.reason}) {skip.path}: {skip.detail}')
    if SHARD.value:
        print(f'part {part} of {count} is complete: {len(assigned)} shards')


def _report(summary: dataset.Summary, folder: Path) -> None:
    """Print the numbers of prepared and skipped videos, and the flags for training."""
    prepared_count = sum(summary.prepared.values())
    splits = ', '.join(f'{split} {count:,}' for split, count in summary.prepared.items())
    print(
        f'{summary.rows:,} videos = {prepared_count:,} prepared ({splits}) + {summary.rows - prepared_count:,} skipped'
    )
    for reason, count in summary.skipped.items():
        print(f'  {count:6,}  {reason}')
    if summary.skipped:
        print(f'list of skipped videos with reasons: {folder / prepared.SKIPPED}')
    if summary.over_limit:
        print(f'NOT published: {summary.over_limit}: check the reasons, or raise --max_skipped or --max_missing')
    else:
        print(f'{summary.frames:,} frames, {summary.megabytes:,.1f} MB: {folder}')
        data_path = data_folder(DATA_DIR.value)
        print(f'train on it with --config.data.source={DATASET.value} --config.data.path={data_path}')


if __name__ == '__main__':
    flags.mark_flag_as_required('dataset')
    console.run(main)
