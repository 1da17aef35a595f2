"""Encodes the videos of a config once. Training can then read latents instead of videos.

python -m launch.encode_latents --config configs/magi_ucf101.py --dataset ucf101_sd
python -m launch.train --config configs/magi_ucf101.py --config.data.source=ucf101_sd --workdir runs/ucf101/magi
python -m launch.encode_latents --config configs/magi_ucf101.py --dataset ucf101_sd --check

The config defines videos, tokenizer, sizes and flips. A frame-wise tokenizer encodes every frame of a training video, a
temporal one encodes `--clips` clips of it. The command uses all devices, and the same command resumes after an
interruption. Several hosts share the work with `--coordinator ...` or on a TPU slice. Or start each host with its own
`--shard i/n`, and combine the parts with `--merge`.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from magi_jax.config import Config, ConfigError
from magi_jax.data import prepared
from magi_jax.data.cache import data_folder
from magi_jax.data.latents import LatentSettings
from magi_jax.data.preparation import encoding, plans, shards
from magi_jax.parallel import hosts
from magi_jax.parallel.encoding import make_encoder
from magi_jax.tokenizers.api import Tokenizer, fingerprint
from magi_jax.tokenizers.folder import open_tokenizer, read_statistics

from . import console, dataset_commands, distributed
from .config_flag import define_config

CONFIG = define_config()
DATASET = flags.DEFINE_string('dataset', None, 'name of the new dataset')
DATA_DIR = console.define_path('data_dir', '', f'folder of all datasets; "" = {console.CACHE_HELP}')
CLIPS = flags.DEFINE_integer(
    'clips', 8, 'clips to encode of each training video, for a temporal tokenizer', lower_bound=1
)
DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'float16'], 'dtype of the stored latents; float16 halves their size'
)
ROWS = flags.DEFINE_integer('rows', 4, 'batch size of each device, in clips', lower_bound=1)
PER_SHARD = flags.DEFINE_integer('videos_per_shard', 128, 'videos in each file of the dataset', lower_bound=1)
SHARD = flags.DEFINE_string('shard', '', 'i/n: encode only part i (from 0) of n, and do not merge')
REPLACE = flags.DEFINE_bool('replace', False, 'delete an existing dataset of that name if it holds other latents')
MERGE = flags.DEFINE_bool('merge', False, 'only merge the parts written with --shard')
CHECK = flags.DEFINE_bool('check', False, 'only verify a finished dataset')


def main() -> None:
    """Encode, merge or check a dataset of latents."""
    name, data_dir = DATASET.value.strip('/'), DATA_DIR.value
    if CHECK.value:
        dataset_commands.check_dataset(name, data_dir, os.cpu_count(), encoding.check_latents)
        return
    if not MERGE.value:
        if CONFIG.value is None:
            raise ConfigError('--config is missing: give the config of videos and tokenizer, or --merge or --check')
        _encode(name, data_dir, console.read_config(CONFIG))
        hosts.barrier('latents encoded')
    if SHARD.value or not console.is_first():
        return
    summary, folder = encoding.merge(name, data_dir), prepared.dataset_folder(name, data_dir)
    counts = ', '.join(f'{split} {count:,}' for split, count in summary['records'].items())
    print(f'{counts} latent videos or clips, {summary["megabytes"]:,.1f} MB: {folder}')
    print(f'train on them with --config.data.source={name} --config.data.path={data_folder(data_dir)}')


def _encode(name: str, data_dir: str, config: Config) -> None:
    host = jax.process_index(), jax.process_count()
    part, count = dataset_commands.parse_shard(SHARD.value) if SHARD.value else host
    tokenizer = open_tokenizer(config.tokenizer, config.data.height, config.data.width)
    job = encoding.make_job(
        name, data_dir, config.data, _settings(config, tokenizer), _provenance(config, tokenizer), REPLACE.value
    )
    folder = prepared.dataset_folder(name, data_dir)
    assigned = shards.planned_shards(folder, job.plan)[part::count]
    encode = make_encoder(tokenizer, config.data.context_frames)
    rows = ROWS.value * jax.local_device_count()
    with plans.exclusive_lock(folder, (part, count)):
        todo = [shard for shard in assigned if not shard.is_done()]
        total, left = (sum(len(encoding.video_numbers(job, shard)) for shard in group) for group in (assigned, todo))
        bar = {'unit': 'video', 'dynamic_ncols': True, 'smoothing': 0.05, 'disable': not console.is_first()}
        with tqdm(initial=total - left, total=total, **bar) as progress:
            for shard in todo:
                for _ in encoding.encode_shard(job, shard, encode, rows, config.data.threads):
                    progress.update()
    if SHARD.value:
        print(f'part {part} of {count} is complete: {len(assigned)} shards')


def _settings(config: Config, tokenizer: Tokenizer) -> LatentSettings:
    data = config.data
    known = {field.name for field in dataclasses.fields(LatentSettings)}
    same = {name: value for name, value in dataclasses.asdict(data).items() if name in known}
    return LatentSettings(
        **same,
        clips=0 if tokenizer.frame_wise else CLIPS.value,
        seed=config.seed,
        latent_shape=tokenizer.latent_shape(data.frames, data.height, data.width),
        variance=tokenizer.has_variance,
        dtype=DTYPE.value,
        videos_per_shard=PER_SHARD.value,
    )


def _provenance(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return facts about the tokenizer: fingerprint, config and latent statistics."""
    mean, std = (np.asarray(x).tolist() for x in (tokenizer.latent_mean, tokenizer.latent_std))
    identity = {'fingerprint': fingerprint(tokenizer), 'config': dataclasses.asdict(tokenizer.config)}
    provenance = read_statistics(config.tokenizer.path) if config.tokenizer.kind != 'identity' else {}
    return identity | {'statistics': {'mean': mean, 'std': std} | provenance}


if __name__ == '__main__':
    flags.mark_flag_as_required('dataset')
    console.run(main, distributed.session())
