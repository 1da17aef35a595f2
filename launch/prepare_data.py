"""Prepares videos for training: decoded and checked once, stored as a TFDS dataset that configs name.

python -m launch.prepare_data --dataset my_videos --source FOLDER_OR_CSV
python -m launch.prepare_data --dataset ucf101/split1 --source UCF --height 256 --width 256
python -m launch.prepare_data --dataset my_videos --check

Run again, it goes on where it was stopped, and tries again the files that were missing, unreadable or too slow. On
several hosts, `--shard i/n` on each prepares a part; once all parts are in one folder, `--merge` makes them a dataset.
Exit status: 0 = done, 1 = error, 3 = more videos lost than allowed.
"""

import os
import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from magi_jax.config import ConfigError
from magi_jax.data import prepared
from magi_jax.data.cache import data_folder
from magi_jax.data.preparation import dataset, public, rows, shards
from magi_jax.data.preparation.reencode import Settings

from . import console, dataset_commands

DATASET = flags.DEFINE_string('dataset', None, 'ucf101/split1, kinetics600, something_something_v2, ... or any name')
SOURCE = console.define_path('source', '', 'folder of videos, or CSV file with columns path, label, split')
DATA_DIR = console.define_path('data_dir', '', f'where datasets are kept; "" = {console.CACHE_HELP}')
HEIGHT = flags.DEFINE_integer('height', Settings.height, 'of the stored videos, in pixels')
WIDTH = flags.DEFINE_integer('width', Settings.width, 'of the stored videos, in pixels')
FPS = flags.DEFINE_float('fps', Settings.fps, 'frames per second; 0 = as many as each file has')
MIN_FRAMES = flags.DEFINE_integer('min_frames', Settings.min_frames, 'shorter videos are skipped')
CODEC = flags.DEFINE_string('codec', Settings.codec, 'h264, or lossless for small synthetic videos')
KEYFRAMES = flags.DEFINE_integer('keyframe_interval', Settings.keyframe_interval, 'smaller reads faster, stores larger')
PER_SHARD = flags.DEFINE_integer('videos_per_shard', Settings.videos_per_shard, 'videos of one file of the dataset')
SHARD = flags.DEFINE_string('shard', '', 'i/n: prepare the i-th (from 0) of n parts only, and do not merge')
REPLACE = flags.DEFINE_bool('replace', False, 'delete a dataset of that name made of other files or settings')
MERGE = flags.DEFINE_bool('merge', False, 'only merge what the parts have left')
CHECK = flags.DEFINE_bool('check', False, 'only verify a finished dataset')
PROCESSES = flags.DEFINE_integer('processes', os.cpu_count(), 'that decode and encode')
TIMEOUT = flags.DEFINE_float('timeout', 300.0, 'seconds for one video, after which it is skipped')
MAX_SKIPPED = flags.DEFINE_float('max_skipped', 0.05, 'part of all videos that may be unusable')
MAX_MISSING = flags.DEFINE_float('max_missing', 0.05, 'part of all videos that may be annotated but not there')

DISK_FULL = 'the disk is full: free space and run the same command again; the shards that are done are safe'
OVER_LIMIT = 3


def main() -> int:
    """Prepares, merges or checks; the exit status."""
    sys.stdout.reconfigure(errors='backslashreplace')  # file names may be any bytes
    name, data_dir = DATASET.value.strip('/'), DATA_DIR.value
    if CHECK.value:
        dataset_commands.check_dataset(name, data_dir, PROCESSES.value, dataset.check_videos)
        return 0
    if not MERGE.value:
        try:
            _prepare(name, data_dir)
        except (OSError, RuntimeError) as error:  # ArrayRecord's is a RuntimeError
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
        raise ConfigError('give --source, a folder of videos or a CSV file; or --check or --merge')
    settings = Settings(
        HEIGHT.value, WIDTH.value, FPS.value, MIN_FRAMES.value, CODEC.value, KEYFRAMES.value, PER_SHARD.value
    )
    part, count = dataset_commands.parse_shard(SHARD.value)
    listing = public.list_dataset(name, SOURCE.value, lambda path: rows.is_usable(path, settings, TIMEOUT.value))
    folder, plan = dataset.make_plan(name, data_dir, listing, settings, REPLACE.value)
    if listing.warning:
        print(f'{listing.warning}, and run this command again with --replace')
    mine = shards.make_shards(name, folder, listing, settings)[part::count]
    if listing.ignored:
        print(f'{len(listing.ignored)} other files are left alone, the first is {listing.ignored[0]}')
    with dataset.exclusive_lock(folder, (part, count)):
        todo = [shard for shard in mine if shards.remaining_rows(shard)]
        total, left = sum(len(shard.rows) for shard in mine), sum(len(shards.remaining_rows(shard)) for shard in todo)
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
        print(f'part {part} of {count}: {len(mine)} shards are done')


def _report(summary: dataset.Summary, folder: Path) -> None:
    kept = sum(summary.prepared.values())
    splits = ', '.join(f'{split} {count:,}' for split, count in summary.prepared.items())
    print(f'{summary.rows:,} videos = {kept:,} prepared ({splits}) + {summary.rows - kept:,} skipped')
    for reason, count in summary.skipped.items():
        print(f'  {count:6,}  {reason}')
    if summary.skipped:
        print(f'each of them with its reason: {folder / prepared.SKIPPED}')
    if summary.over_limit:
        print(f'NOT published: {summary.over_limit}. Look at the reasons; --max_skipped and --max_missing allow more')
    else:
        print(f'{summary.frames:,} frames, {summary.megabytes:,.1f} MB: {folder}')
        place = data_folder(DATA_DIR.value)
        print(f'train on it with --config.data.source={DATASET.value} --config.data.path={place}')


if __name__ == '__main__':
    flags.mark_flag_as_required('dataset')
    console.run(main)
