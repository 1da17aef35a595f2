"""What is measured, and how, by name: a number without its protocol cannot be compared with any other.

N clips on either side of a distance, T frames of a clip, C context frames.
"""

import dataclasses
from typing import Literal

from magi_jax.config import ConfigError

Extractor = Literal['classifier', 'i3d-tf400', 'i3d-videogpt']


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Five real frames of `bouncing_objects/shapes` continued, at interval 1, on the first clips of the test split.

    Frames are compared with the true ones, and objects are looked for: `evaluation.prediction`.
    """

    context: int = 5
    clips: int = 64
    frames: int = 16
    long_clips: int = 16
    long_frames: int = 101


@dataclasses.dataclass(frozen=True)
class Distances:
    """N real clips against N generated ones through a network: `evaluation.scoring`.

    The Fréchet distance uses unbiased covariances (N - 1). Beside it always stands the floor: the distance of the
    reference clips to as many other real ones.

    Attributes:
      dataset: what it is, for people.
      sources: data.source of runs that it fits; a name stands for its versions too ('ucf101' for 'ucf101/split1').
      split: of the reference clips.
      clips: N.
      seeds: how many times N clips are generated, each time with another seed; mean and deviation are over these.
      frames: T, the context included: it is scored too. Of a video longer than the network's window the last window
        counts, and the curve shows the others.
      interval: raw frames between two frames, of real and of generated clips.
      context: C.
      context_of: clips whose first frames are continued. 'reference': the reference clips, as published numbers do it;
        generated and reference clips then share frames. 'others': the floor's, so that a perfect model is at the floor.
      side: pixels, square.
      extractor: the network.
      start: where in its video a clip begins: at any frame (drawn by a fixed seed), or at the first.
      stills: k: the network also sees every k-th frame, from the last one back, as a clip that stands still: what
        frames look like, whatever moves. 0: it does not.
    """

    dataset: str
    sources: tuple[str, ...]
    split: str
    clips: int
    seeds: int
    frames: int
    interval: int
    context: int
    context_of: Literal['reference', 'others']
    side: int
    extractor: Extractor
    start: Literal['any', 'first'] = 'any'
    stills: int = 0

    def check(self, name: str, source: str, size: tuple[int, int], max_interval: int) -> None:
        """Raises ConfigError unless a run on `source`, with frames of `size` (height, width), can be measured so."""
        if not any(source == known or source.startswith(f'{known}/') for known in self.sources):
            raise ConfigError(f'protocol {name} needs a run on {" or ".join(self.sources)}, not on {source}')
        if size != (self.side, self.side):
            raise ConfigError(f'protocol {name} is of {self.side}x{self.side} frames, the run of {size[0]}x{size[1]}')
        if self.interval > max_interval:
            raise ConfigError(
                f'protocol {name} needs videos at interval {self.interval}, the run knows at most {max_interval}'
            )


# MAGI section 5.1, the 2,048 of 16 frames of StyleGAN-V; MAGI trains and tests at interval 3.
_UCF101 = Distances(
    'UCF-101', ('ucf101', 'video_folder'), 'train', 2048, 4, 16, 3, 0, 'reference', 256, 'i3d-tf400'
)  # fmt: skip
# Five given frames, 50,000 clips. MAGI does not say at which size: 64 is the usual one, 128 is named as such.
_KINETICS600 = Distances(
    'Kinetics-600', ('kinetics600', 'video_folder'), 'test', 50_000, 1, 16, 1, 5, 'reference', 64, 'i3d-tf400'
)  # fmt: skip
_SHAPES = Distances(
    'bouncing_objects/shapes', ('bouncing_objects/shapes',), 'test', 2048, 4, 16, 1, 5, 'others', 64, 'classifier'
)  # fmt: skip
_RUNLOCAL = {'clips': 6, 'seeds': 2}


def _published() -> dict[str, Distances]:
    replace = dataclasses.replace
    of_tensorflow = {
        'ucf101_unconditional': _UCF101,
        'ucf101_first_frame': replace(_UCF101, context=1),
        'kinetics600_five_frame_64px': _KINETICS600,
        'kinetics600_five_frame_64px_17_frames': replace(_KINETICS600, frames=17),
        'kinetics600_five_frame_128px': replace(_KINETICS600, side=128),
        'kinetics600_five_frame_128px_17_frames': replace(_KINETICS600, side=128, frames=17),
        # MAGVIT: interval 1, 10,000 clips four times over; its generator is class-conditional, ours is not.
        'magvit_ucf101': replace(_UCF101, clips=10_000, interval=1, side=128),
        'magvit_kinetics600': replace(_KINETICS600, seeds=4),
    }
    of_videogpt = {f'{name}_videogpt': replace(p, extractor='i3d-videogpt') for name, p in of_tensorflow.items()}
    return of_tensorflow | of_videogpt


def _embedded() -> dict[str, Distances]:
    replace = dataclasses.replace
    digits = 'bouncing_objects/digits'
    scores = {
        'shapes_five_frame': _SHAPES,
        'shapes_first_frame': replace(_SHAPES, context=1, stills=5),
        'shapes_unconditional': replace(_SHAPES, context=0),
        'shapes_first_frame_long': replace(_SHAPES, context=1, frames=128, clips=512, seeds=1, stills=16),
        'digits_five_frame': replace(_SHAPES, dataset=digits, sources=(digits,)),
        'digits_first_frame': replace(_SHAPES, dataset=digits, sources=(digits,), context=1),
    }
    # Fewer clips raise floor and value alike: another name, not another flag.
    quick = {f'{name}_quick': replace(p, clips=p.clips // 4, seeds=2) for name, p in scores.items()}
    # Of many trainings, each measured once.
    study = {f'{name}_study': replace(p, clips=p.clips // 4, seeds=1) for name, p in scores.items() if p.stills}
    runlocal = {f'{name}_runlocal': replace(p, **_RUNLOCAL) for name, p in scores.items()}
    return scores | quick | study | runlocal


PROTOCOLS: dict[str, Continuations | Distances] = {
    'bouncing_shapes': Continuations(),
    'bouncing_shapes_runlocal': Continuations(clips=6, frames=8, long_clips=6, long_frames=12),
    **_embedded(),
    **_published(),
}


def find_protocol(name: str) -> Continuations | Distances:
    """The protocol of this name. Raises ConfigError, naming those there are."""
    if name not in PROTOCOLS:
        raise ConfigError(f'no protocol {name}; there are: {", ".join(PROTOCOLS)}')
    return PROTOCOLS[name]
