"""Encodes the captions of a dataset once. Training then reads their text states.

python -m launch.encode_text --dataset bouncing_objects/captions --encoder words --length 16 --width 64
python -m launch.encode_text --dataset my_videos --captions captions.jsonl --encoder Qwen/Qwen2.5-1.5B
python -m launch.encode_text --data_path FOLDER_OF_VIDEOS --captions captions.csv --encoder Qwen/Qwen2.5-1.5B

Captions are the labels `caption` of the dataset, or a file with the entries video_id and caption: JSON lines, or CSV
with these columns. Video ids of a folder are the names of its files. The states lie beside the videos, in the folder
text/, and a dataset of latents uses those of its videos. The same command resumes after an interruption.
"""

import os

from absl import flags
from tqdm import tqdm

from magi_jax.config import DataConfig, TextConfig
from magi_jax.data import prepared, sources, texts
from magi_jax.data.latents import source_videos_config
from magi_jax.data.preparation import captions, plans, shards, text_states
from magi_jax.text_encoders.api import TextEncoder, describe, make_encoder
from magi_jax.text_encoders.huggingface import DTYPES

from . import console, dataset_commands

DATASET = flags.DEFINE_string('dataset', sources.FOLDER, 'name of the dataset, or video_folder for --data_path')
DATA_PATH = console.define_path(
    'data_path', '', f'folder of all datasets ("" = {console.CACHE_HELP}), or the folder of video files'
)
ENCODER = console.define_path('encoder', None, 'words, or the name or folder of a Hugging Face model')
CAPTIONS = console.define_path('captions', '', 'file of captions, .jsonl or .csv; "" = the labels of the dataset')
LENGTH = flags.DEFINE_integer('length', TextConfig.length, 'states of a text; longer texts are truncated', 1, 65_536)
WIDTH = flags.DEFINE_integer(
    'width', None, f'width of the states; default: that of the model, {TextConfig.width} for words', 1, 65_536
)
SYSTEM_PROMPT = flags.DEFINE_string('system_prompt', '', 'text before every caption, whose states are dropped')
DTYPE = flags.DEFINE_enum('dtype', DTYPES[0], DTYPES, 'dtype in which a Hugging Face model computes')
DEVICE = flags.DEFINE_string('device', 'cpu', 'PyTorch device of a Hugging Face model, such as cuda')
BATCH = flags.DEFINE_integer('batch', 32, 'captions that are encoded together', lower_bound=1)
PER_SHARD = flags.DEFINE_integer('videos_per_shard', 1024, 'captions in each file', lower_bound=1)
REPLACE = flags.DEFINE_bool('replace', False, 'delete existing texts of other captions or another encoder')
CHECK = flags.DEFINE_bool('check', False, 'only verify finished texts')


def main() -> None:
    """Encode or check the captions of a dataset."""
    data = source_videos_config(DataConfig(source=DATASET.value.strip('/'), path=DATA_PATH.value, frames=1))
    name, folder = texts.location(data, ENCODER.value)
    if CHECK.value:
        dataset_commands.check_dataset(name, folder, os.cpu_count(), text_states.check_texts)
        return
    found = captions.collect(data, CAPTIONS.value)
    encoder = make_encoder(ENCODER.value, LENGTH.value, WIDTH.value, SYSTEM_PROMPT.value, DTYPE.value, DEVICE.value)
    job = text_states.make_job(name, folder, found, describe(encoder), PER_SHARD.value, REPLACE.value)
    _encode(job, encoder)
    summary = text_states.merge(name, folder)
    counts = ', '.join(f'{split} {count:,}' for split, count in summary['records'].items())
    print(f'{counts} captions, {summary["megabytes"]:,.1f} MB: {prepared.dataset_folder(name, folder)}')
    fields = {'encoder': encoder.name, 'length': encoder.length, 'width': encoder.width}
    print('train on them with ' + ' '.join(f'--config.text.{field}={value}' for field, value in fields.items()))


def _encode(job: text_states.Job, encoder: TextEncoder) -> None:
    """Encode the shards that are not done yet, with a progress bar."""
    with plans.exclusive_lock(job.folder, (0, 1)):
        planned = shards.planned_shards(job.folder, job.plan)
        todo = [shard for shard in planned if not shard.is_done()]
        total, left = (sum(len(text_states.rows_of(job, shard)) for shard in group) for group in (planned, todo))
        with tqdm(initial=total - left, total=total, unit='caption', dynamic_ncols=True, smoothing=0.05) as progress:
            for shard in todo:
                for count in text_states.encode_shard(job, shard, encoder, BATCH.value):
                    progress.update(count)


if __name__ == '__main__':
    flags.mark_flag_as_required('encoder')
    console.run(main)
