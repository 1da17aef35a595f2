"""Samples videos with a trained generator: mp4, gif and npz files, or mp4 only for long or many videos.

python -m launch.sample --workdir runs/quickstart/magi --frames 64 --num 4 --out videos
python -m launch.sample --workdir runs/quickstart/magi --frames 64 --context clip.mp4 --context_frames 5 --out continued
python -m launch.sample --workdir runs/quickstart/magi --frames 5000 --stream --out long
python -m launch.sample --workdir runs/quickstart/magi --num 2048 --batch 64 --out many
python -m launch.sample --workdir runs/quickstart_videomar/videomar --prompt 'a red disc moves up and left' --out red

No video is overwritten: a folder with videos of another call is refused. The same --batch or --stream call resumes.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import magi_jax
from magi_jax.config import ConfigError, override, sampler_help
from magi_jax.data.video_file import mp4_writer, read_video, write_gif, write_mp4
from magi_jax.parallel.hosts import broadcast_from_first_host

from . import console, distributed, video_folder

WORKDIR = console.define_path(
    'workdir',
    None,
    'folder of a trained generator: a run, a folder of launch.export, or user/name on the Hugging Face Hub',
)
OUT = console.define_path('out', None, 'folder for the videos')
FRAMES = flags.DEFINE_integer('frames', 16, 'frames of each video, including the context', lower_bound=1)
CONTEXT = console.define_path('context', None, 'video or image file to continue; without it, videos start from scratch')
PROMPT = flags.DEFINE_string('prompt', None, 'text that describes the videos, for a model that was trained with text')
SIZE = flags.DEFINE_list(
    'size', None, 'HEIGHT,WIDTH in pixels, for a model that is not bound to its trained size; default: that size'
)
CONTEXT_FRAMES = flags.DEFINE_integer(
    'context_frames', 1, 'number of context frames read from --context', lower_bound=1
)
INTERVAL = flags.DEFINE_integer(
    'interval', 1, 'frame interval in raw frames; 1 = every frame of the original video', lower_bound=1
)
NUM = flags.DEFINE_integer('num', 1, 'number of videos', lower_bound=1)
SEED = flags.DEFINE_integer(
    'seed', 0, 'random seed; the same seed gives the same videos', lower_bound=0, upper_bound=2**32 - 1
)
FPS = flags.DEFINE_float('fps', 8, 'frame rate of the written files, in frames per second', lower_bound=0.1)
STREAM = flags.DEFINE_bool(
    'stream', False, 'write only mp4 files, frame by frame, so that memory does not grow with the length'
)
BATCH = flags.DEFINE_integer(
    'batch',
    None,
    'number of videos to sample at a time; write only mp4 files and skip the ones that exist',
    lower_bound=1,
)
SAMPLER_FIELDS = '; '.join(f'{name}: {text}' for name, text in sampler_help().items())
SAMPLER = flags.DEFINE_multi_string(
    'sampler',
    [],
    f'override of a sampler field, FIELD=VALUE, e.g. temperature=0.9; repeatable. Fields: {SAMPLER_FIELDS}',
)


def main() -> None:
    """Sample videos and write them to --out, with `write_small` or `write_large`."""
    generator = magi_jax.load(WORKDIR.value)
    generator = generator.with_sampler(override(generator.config.sampler, SAMPLER.value))
    folder, write = Path(OUT.value).expanduser(), write_large if STREAM.value or BATCH.value else write_small
    with video_folder.locked(folder) if console.is_first() else contextlib.nullcontext():
        write(generator, folder, _arguments())


def _arguments() -> dict[str, Any]:
    """Return the arguments of `Generator.sample` that the flags give."""
    names = ('frames', 'interval', 'seed', 'prompt')
    return {name: flags.FLAGS[name].value for name in names} | {'size': _size()}


def _size() -> tuple[int, int] | None:
    if SIZE.value is None:
        return None
    if len(SIZE.value) != 2 or not all(side.strip().isdigit() for side in SIZE.value):
        raise ConfigError(f'--size={",".join(SIZE.value)} is not HEIGHT,WIDTH: give two whole numbers, as in 96,96')
    return int(SIZE.value[0]), int(SIZE.value[1])


def write_small(generator: magi_jax.Generator, folder: Path, arguments: dict[str, Any]) -> None:
    """Write `00.mp4`, `00.gif`, ... and `videos.npz`, all at the end.

    The npz file holds `videos`, uint8 [num, frames, H, W, 3], and `settings`.
    """
    if console.is_first():
        video_folder.check_no_videos(folder)
    context = _context(generator, NUM.value)
    video = generator.sample(context, num=NUM.value, progress=console.frame_progress, **arguments)
    if not console.is_first():
        return
    with video_folder.write_together(folder) as draft:
        for number, clip in enumerate(video):
            write_mp4(draft / f'{number:02}.mp4', clip, FPS.value)
            write_gif(draft / f'{number:02}.gif', clip, FPS.value)
        np.savez_compressed(draft / 'videos.npz', videos=video, settings=json.dumps(_settings(generator)))
    print(f'{len(video)} videos of {video.shape[1]} frames in {folder}')


def write_large(generator: magi_jax.Generator, folder: Path, arguments: dict[str, Any]) -> None:
    """Write `000000.mp4`, ... in batches, each file when it is complete, and `settings.json`. Existing videos are kept.

    A video depends only on the settings, the seed and its number. It does not depend on the batch or on a restart.
    """
    paths = [folder / f'{number:06}.mp4' for number in range(NUM.value)]
    size = min(BATCH.value or NUM.value, NUM.value)
    arguments = arguments | {'context': _context(generator, size)}
    if console.is_first():
        video_folder.write_settings(folder, _settings(generator))
    missing = np.flatnonzero(broadcast_from_first_host([not path.exists() for path in paths]))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]

    def write_batches() -> Iterator[None]:
        for batch in batches:
            numbers = np.resize(batch, size)  # padded to the full size, so that all batches use one compiled program
            frames = _frames(generator, {'numbers': numbers} | arguments)
            with contextlib.ExitStack() as stack:
                batch_paths = [paths[number] for number in batch] if console.is_first() else []
                writers = [stack.enter_context(mp4_writer(path, FPS.value)) for path in batch_paths]
                for images in frames:
                    for write, image in zip(writers, images):
                        write(image)
                    yield

    for _ in console.frame_progress(write_batches(), len(batches) * FRAMES.value):
        pass
    if console.is_first():
        print(f'{len(missing)} videos of {FRAMES.value} frames sampled; {NUM.value} videos are in {folder}')


def _frames(generator: magi_jax.Generator, arguments: dict[str, Any]) -> Iterator[np.ndarray]:
    """Return an iterator over the frames [B, H, W, 3] of a batch.

    For a tokenizer that is not frame-wise, all frames are sampled before the first is returned.
    """
    if STREAM.value or generator.tokenizer.frame_wise:
        return generator.stream(**arguments)
    return iter(np.moveaxis(generator.sample(**arguments, progress=False), 1, 0))


def _settings(generator: magi_jax.Generator) -> dict[str, Any]:
    """Return all settings that the videos depend on, except their number."""
    names = ('frames', 'context', 'context_frames', 'interval', 'seed', 'fps')
    settings = {name: flags.FLAGS[name].value for name in names} | {'prompt': PROMPT.value, 'size': SIZE.value}
    settings |= {'workdir': str(Path(generator.workdir).resolve()), 'step': generator.step}
    return settings | {f'sampler.{name}': value for name, value in dataclasses.asdict(generator.config.sampler).items()}


def _context(generator: magi_jax.Generator, num: int) -> np.ndarray | None:
    """Return the context frames, equal for each video: uint8 [num, c, H, W, 3]. Return None without --context."""
    if not CONTEXT.value:
        return None
    data, count = generator.config.data, CONTEXT_FRAMES.value
    height, width = _size() or (data.height, data.width)
    needed = (count - 1) * INTERVAL.value + 1
    video = read_video(CONTEXT.value, height, width, max_frames=needed)
    if len(video) < needed:
        raise ConfigError(
            f'{CONTEXT.value} has {len(video)} frames, but {count} context frames at interval {INTERVAL.value} need'
            f' {needed}: lower --context_frames or --interval'
        )
    return np.repeat(video[None, :: INTERVAL.value], num, axis=0)


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
