"""Generates videos with a trained run: mp4, gif and npz.

python -m launch.sample --workdir runs/quickstart/magi --frames 64 --num 4 --out videos
python -m launch.sample --workdir runs/quickstart/magi --frames 64 --context clip.mp4 --context_frames 5 --out videos
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

import magi_jax
from launch import console, distributed
from magi_jax.config import ConfigError, override
from magi_jax.data.video_file import read_video, write_gif, write_mp4

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of a generator run')
OUT = flags.DEFINE_string('out', None, 'folder to write to')
FRAMES = flags.DEFINE_integer('frames', 16, 'length of each video, context included', lower_bound=1)
CONTEXT = flags.DEFINE_string('context', None, 'video file whose first frames are continued; none: from nothing')
CONTEXT_FRAMES = flags.DEFINE_integer('context_frames', 1, 'how many of its frames are given', lower_bound=1)
INTERVAL = flags.DEFINE_integer('interval', 1, 'raw frames between two frames', lower_bound=1)
NUM = flags.DEFINE_integer('num', 1, 'number of videos', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'same seed, same videos')
FPS = flags.DEFINE_float('fps', 8, 'frames per second of the files', lower_bound=0.1)
SAMPLER = flags.DEFINE_multi_string('sampler', [], 'sampler setting as FIELD=VALUE, e.g. temperature=0.9; repeatable')


def main() -> None:
    """Samples and writes `OUT/00.mp4`, `00.gif`, ... and `videos.npz` (uint8 [num, frames, H, W, 3], settings)."""
    generator = magi_jax.load(WORKDIR.value)
    generator = generator.with_sampler(override(generator.config.sampler, SAMPLER.value))
    video = generator.sample(
        _context(generator),
        FRAMES.value,
        num=NUM.value,
        interval=INTERVAL.value,
        seed=SEED.value,
        progress=console.frame_progress,
    )
    if not console.is_first():
        return
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(video):
        write_mp4(folder / f'{number:02}.mp4', clip, FPS.value)
        write_gif(folder / f'{number:02}.gif', clip, FPS.value)
    settings = {name: flags.FLAGS[name].value for name in ('workdir', 'context', 'context_frames', 'interval', 'seed')}
    np.savez_compressed(folder / 'videos.npz', videos=video, settings=json.dumps(settings))
    print(f'{len(video)} videos of {video.shape[1]} frames in {folder}')


def _context(generator: magi_jax.Generator) -> np.ndarray | None:
    """uint8 [num, c, H, W, 3], the same for each video, or None."""
    if not CONTEXT.value:
        return None
    data, count = generator.config.data, CONTEXT_FRAMES.value
    needed = (count - 1) * INTERVAL.value + 1
    video = read_video(CONTEXT.value, data.height, data.width, max_frames=needed)
    if len(video) < needed:
        raise ConfigError(
            f'{CONTEXT.value} has {len(video)} frames; {count} context frames at interval {INTERVAL.value} need'
            f' {needed}: lower --context_frames or --interval'
        )
    return np.repeat(video[None, :: INTERVAL.value], NUM.value, axis=0)


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main, distributed.session())
