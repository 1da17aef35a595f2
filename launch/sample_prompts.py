"""Samples videos from images and prompts, named as the official scripts of VBench-I2V expect: 'PROMPT-NUMBER.mp4'.

python -m launch.sample_prompts --workdir runs/videomar/i2v --images crop/16-9 --prompts vbench2_i2v_full_info.json \
  --num 5 --frames 25 --out vbench_videos

--prompts is a JSON list or JSON lines with the keys image_name and prompt_en (VBench), or image and prompt. Without it,
the name of an image file is its prompt. The same call resumes: videos that exist are kept.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

import magi_jax
from magi_jax.config import ConfigError, override
from magi_jax.data.video_file import read_video, write_mp4

from . import console, distributed, video_folder

WORKDIR = console.define_path('workdir', None, 'folder of a generator that was trained with text')
IMAGES = console.define_path('images', None, 'folder of images, the first frames of the videos')
PROMPTS = console.define_path('prompts', '', 'file of images and prompts; "" = the names of the images are the prompts')
OUT = console.define_path('out', None, 'folder for the videos')
NUM = flags.DEFINE_integer('num', 5, 'videos of each image and prompt; VBench-I2V expects 5', lower_bound=1)
FRAMES = flags.DEFINE_integer('frames', 25, 'frames of each video, including the image', lower_bound=2)
SEED = flags.DEFINE_integer('seed', 0, 'random seed', lower_bound=0, upper_bound=2**32 - 1)
FPS = flags.DEFINE_float('fps', 8, 'frame rate of the written files, in frames per second', lower_bound=0.1)
SAMPLER = flags.DEFINE_multi_string('sampler', [], 'override of a sampler field, as in launch.sample; repeatable')

MAX_NAME = 255  # bytes of a file name
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
KEYS = (('image_name', 'prompt_en'), ('image', 'prompt'))  # names of the two fields of an entry


def main() -> None:
    """Sample NUM videos of each image, all videos of an image together."""
    pairs = list(dict.fromkeys(read_pairs(Path(IMAGES.value), PROMPTS.value)))
    generator = magi_jax.load(WORKDIR.value)
    generator = generator.with_sampler(override(generator.config.sampler, SAMPLER.value))
    data, folder = generator.config.data, Path(OUT.value)
    with video_folder.locked(folder):
        for row, (image, prompt) in enumerate(tqdm(pairs, unit='image', dynamic_ncols=True)):
            paths = [folder / f'{prompt}-{number}.mp4' for number in range(NUM.value)]
            if all(path.exists() for path in paths):
                continue
            first = read_video(image, data.height, data.width, max_frames=1)
            numbers = row * NUM.value + np.arange(NUM.value)
            context = np.repeat(first[None], NUM.value, axis=0)
            sampling: dict[str, Any] = {'seed': SEED.value, 'numbers': numbers, 'progress': False}
            videos = generator.sample(context, FRAMES.value, prompt=prompt, **sampling)
            for path, video in zip(paths, videos):
                write_mp4(path, video, FPS.value)
    print(f'{len(pairs) * NUM.value} videos are in {folder}')


def read_pairs(folder: Path, prompts: str) -> Iterator[tuple[Path, str]]:
    """Yield the images of a folder with their prompts.

    Raises:
      ConfigError: there are no images, an image is missing, or an entry of the file has no prompt.
    """
    if not prompts:
        images = [path for path in sorted(folder.glob('*')) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ConfigError(f'{folder} holds no images: give a folder with {", ".join(IMAGE_SUFFIXES)} files')
        yield from ((path, path.stem) for path in images)
        return
    for number, entry in enumerate(read_entries(Path(prompts)), 1):
        keys = next((keys for keys in KEYS if all(isinstance(entry.get(key), str) for key in keys)), None)
        if keys is None:
            raise ConfigError(f'entry {number} of {prompts} has no image and prompt: give the keys image and prompt')
        image, prompt = folder / entry[keys[0]], entry[keys[1]]
        if not image.is_file():
            raise ConfigError(f'entry {number} of {prompts}: there is no image {image}: correct --images or the entry')
        if len(f'{prompt}-{NUM.value}.mp4'.encode()) > MAX_NAME or '/' in prompt:
            raise ConfigError(f'entry {number} of {prompts}: the prompt is no file name: shorten it, without /')
        yield image, prompt


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list, or JSON lines. Raise ConfigError if the file is missing or neither of them."""
    if not path.is_file():
        raise ConfigError(f'there is no file {path}: give the JSON file of images and prompts')
    text = path.read_text()
    try:
        entries = json.loads(text) if text.lstrip().startswith('[') else [*map(json.loads, text.splitlines())]
    except ValueError as error:
        raise ConfigError(f'{path} is not JSON ({error}): give a list or lines of image and prompt') from error
    if not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path} holds entries that are no objects: give the keys image and prompt')
    return entries


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'images', 'out'])
    console.run(main, distributed.session())
