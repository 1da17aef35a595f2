"""Samples videos from images and prompts, named as the official scripts of VBench-I2V expect: 'PROMPT-NUMBER.mp4'.

python -m launch.sample_prompts --workdir runs/videomar/i2v --images crop/16-9 --prompts vbench2_i2v_full_info.json \
  --num 5 --frames 25 --out vbench_videos

--prompts is a JSON list or JSON lines with the keys image_name and prompt_en (VBench), or image and prompt. Without it,
the name of an image file is its prompt. The same call resumes: videos that exist are kept. A folder with videos of
other settings is refused.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

import magi_jax
from magi_jax.config import override
from magi_jax.data.video_file import read_video, write_mp4
from magi_jax.parallel.hosts import broadcast_from_first_host

from . import console, distributed, image_prompts, video_folder

WORKDIR = console.define_path('workdir', None, 'folder of a generator that was trained with text')
IMAGES = console.define_path('images', None, 'folder of images, the first frames of the videos')
PROMPTS = console.define_path('prompts', '', 'file of images and prompts; "" = the names of the images are the prompts')
OUT = console.define_path('out', None, 'folder for the videos')
NUM = flags.DEFINE_integer('num', 5, 'videos of each image and prompt; VBench-I2V expects 5', lower_bound=1)
FRAMES = flags.DEFINE_integer('frames', 25, 'frames of each video, including the image', lower_bound=2)
SEED = flags.DEFINE_integer('seed', 0, 'random seed', lower_bound=0, upper_bound=2**32 - 1)
FPS = flags.DEFINE_float('fps', 8, 'frame rate of the written files, in frames per second', lower_bound=0.1)
SAMPLER = flags.DEFINE_multi_string('sampler', [], 'override of a sampler field, as in launch.sample; repeatable')


def main() -> None:
    """Sample NUM videos of each image, all videos of an image together."""
    pairs = image_prompts.read_pairs(Path(IMAGES.value), PROMPTS.value)
    generator = magi_jax.load(WORKDIR.value)
    generator = generator.with_sampler(override(generator.config.sampler, SAMPLER.value))
    data, folder = generator.config.data, Path(OUT.value)
    with video_folder.locked(folder) if console.is_first() else contextlib.nullcontext():
        if console.is_first():
            video_folder.write_settings(folder, _settings(generator), video_folder.PROMPT_OUTPUT_NAMES)
        rows = tqdm(pairs, unit='image', dynamic_ncols=True, disable=not console.is_first())
        for row, (image, prompt) in enumerate(rows):
            paths = [folder / f'{prompt}-{number}.mp4' for number in range(NUM.value)]
            if broadcast_from_first_host(all(path.exists() for path in paths)):
                continue
            first = read_video(image, data.height, data.width, max_frames=1)
            numbers = row * NUM.value + np.arange(NUM.value)
            context = np.repeat(first[None], NUM.value, axis=0)
            sampling: dict[str, Any] = {'seed': SEED.value, 'numbers': numbers, 'progress': False}
            videos = generator.sample(context, FRAMES.value, prompt=prompt, **sampling)
            for path, video in zip(paths, videos):
                if console.is_first() and not path.exists():
                    write_mp4(path, video, FPS.value)
    if console.is_first():
        print(f'{len(pairs) * NUM.value} videos are in {folder}')


def _settings(generator: magi_jax.Generator) -> dict[str, Any]:
    """Return all settings that the videos depend on."""
    names = ('images', 'prompts', 'num', 'frames', 'seed', 'fps')
    settings = {name: flags.FLAGS[name].value for name in names}
    settings |= {'workdir': str(Path(generator.workdir).resolve()), 'step': generator.step}
    return settings | {f'sampler.{name}': value for name, value in dataclasses.asdict(generator.config.sampler).items()}


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'images', 'out'])
    console.run(main, distributed.session())
