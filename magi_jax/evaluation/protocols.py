"""What is measured, and how, by name: a number without its protocol cannot be compared with any other.

A protocol has a base name and settings that may be changed: 'shapes_five_frame --clips 512 --seeds 2'.

N clips on either side of a distance, T frames of a clip, C context frames.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from magi_jax.config import ConfigError

Extractor = Literal['classifier', 'i3d-tf400', 'i3d-videogpt']
TAKES_ANY_RUN = 'use --protocol continuation, which takes any run'


@dataclasses.dataclass(frozen=True)
class FrameComparison:
    """Clips of any run, continued and compared with the true frames: `evaluation.continuation`.

    Attributes:
      clips: N; fewer where the split holds fewer.
      seeds: how many times each clip is continued, each time with another seed.
      frames: T, the context included; None: `data.frames` of the run.
      context: C; None: 5, or fewer for short clips and where the tokenizer takes no 5.
      interval: raw frames between two frames.
    """

    CHANGEABLE: ClassVar = ('clips', 'seeds', 'frames', 'context', 'interval')
    clips: int = 64
    seeds: int = 1
    frames: int | None = None
    context: int | None = None
    interval: int = 1


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Five real frames of `bouncing_objects/shapes` continued, at interval 1, on the first clips of the test split.

    Frames are compared with the true ones, and objects are looked for: `evaluation.prediction`.
    """

    CHANGEABLE: ClassVar = ('clips', 'frames', 'long_clips', 'long_frames')
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

    CHANGEABLE: ClassVar = ('clips', 'seeds', 'frames', 'extractor')
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
            raise ConfigError(
                f'protocol {name} needs a run on {" or ".join(self.sources)}, not on {source}: {TAKES_ANY_RUN}'
            )
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
_DIGITS = dataclasses.replace(_SHAPES, dataset='bouncing_objects/digits', sources=('bouncing_objects/digits',))

Protocol = FrameComparison | Continuations | Distances
PROTOCOLS: dict[str, Protocol] = {
    'continuation': FrameComparison(),
    'bouncing_shapes': Continuations(),
    'shapes_five_frame': _SHAPES,
    'shapes_first_frame': dataclasses.replace(_SHAPES, context=1, stills=5),
    'shapes_unconditional': dataclasses.replace(_SHAPES, context=0),
    'shapes_first_frame_long': dataclasses.replace(_SHAPES, context=1, frames=128, clips=512, seeds=1, stills=16),
    'digits_five_frame': _DIGITS,
    'digits_first_frame': dataclasses.replace(_DIGITS, context=1),
    'ucf101_unconditional': _UCF101,
    'ucf101_first_frame': dataclasses.replace(_UCF101, context=1),
    'kinetics600_five_frame_64px': _KINETICS600,
    'kinetics600_five_frame_128px': dataclasses.replace(_KINETICS600, side=128),
    # MAGVIT: interval 1, 10,000 clips four times over; its generator is class-conditional, ours is not.
    'magvit_ucf101': dataclasses.replace(_UCF101, clips=10_000, interval=1, side=128),
    'magvit_kinetics600': dataclasses.replace(_KINETICS600, seeds=4),
}
SUMMARIES = {
    'continuation': 'any run: PSNR and SSIM of continued clips, against the true frames and a repeated last frame',
    'bouncing_shapes': 'the quickstart: PSNR of predicted frames, and which objects a long video keeps',
    'shapes_five_frame': 'shapes: Fréchet distance through the embedded classifier, 5 given frames',
    'shapes_first_frame': 'shapes: the same distance, 1 given frame, of clips and of single frames',
    'shapes_unconditional': 'shapes: the same distance, no given frame',
    'shapes_first_frame_long': 'shapes: the same distance, 1 given frame, videos of 128 frames',
    'digits_five_frame': 'digits: Fréchet distance through the embedded classifier, 5 given frames',
    'digits_first_frame': 'digits: the same distance, 1 given frame',
    'ucf101_unconditional': 'UCF-101: FVD as MAGI and StyleGAN-V measure it, no given frame; needs --weights of I3D',
    'ucf101_first_frame': 'UCF-101: FVD as MAGI measures it, 1 given frame; needs --weights',
    'kinetics600_five_frame_64px': 'Kinetics-600 at 64x64: FVD, 5 of 16 frames given (or --frames 17); needs --weights',
    'kinetics600_five_frame_128px': 'Kinetics-600 at 128x128: FVD, 5 of 16 frames given; needs --weights',
    'magvit_ucf101': 'UCF-101: FVD as MAGVIT measures it, 10,000 clips four times over; needs --weights',
    'magvit_kinetics600': 'Kinetics-600 at 64x64: FVD as MAGVIT measures it, four times over; needs --weights',
}
FLAG_NAMES = {'context': 'context_frames', 'extractor': 'i3d'}  # where a flag has another name than the field


def _older_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Full names of earlier versions -> base name and changed settings."""
    small = {'clips': 6, 'frames': 8, 'long_clips': 6, 'long_frames': 12}
    older: dict[str, tuple[str, dict[str, Any]]] = {'bouncing_shapes_runlocal': ('bouncing_shapes', small)}
    distances = {name: protocol for name, protocol in PROTOCOLS.items() if isinstance(protocol, Distances)}
    for name, protocol in distances.items():
        if protocol.extractor == 'classifier':
            older[f'{name}_quick'] = name, {'clips': protocol.clips // 4, 'seeds': 2}
            older[f'{name}_runlocal'] = name, {'clips': 6, 'seeds': 2}
            if protocol.stills:
                older[f'{name}_study'] = name, {'clips': protocol.clips // 4, 'seeds': 1}
            continue
        lengths = {'': {}, '_17_frames': {'frames': 17}} if name.startswith('kinetics600') else {'': {}}
        for suffix, changes in lengths.items():
            if suffix:
                older[f'{name}{suffix}'] = name, changes
            older[f'{name}{suffix}_videogpt'] = name, changes | {'extractor': 'i3d-videogpt'}
    return older


OLDER_NAMES = _older_names()


def find_protocol(name: str, **changes: Any) -> Protocol:
    """Return the protocol of a base name, or of a full name of earlier versions, with changed settings.

    Args:
      name: a key of PROTOCOLS or OLDER_NAMES.
      **changes: fields of the protocol; None leaves a field as it is.

    Raises:
      ConfigError: there is no such protocol, it does not let a field be changed, or a value does not fit.
    """
    base, changes = _resolve(name, changes)
    protocol = PROTOCOLS[base]
    for field in changes:
        if field not in protocol.CHANGEABLE:
            known = ', '.join(f'--{FLAG_NAMES.get(each, each)}' for each in protocol.CHANGEABLE)
            raise ConfigError(f'protocol {base} takes no --{FLAG_NAMES.get(field, field)}: it takes {known}')
    changed = dataclasses.replace(protocol, **changes)
    if isinstance(changed, Distances):
        _check_distances(base, changed)
    for field in ('frames', 'long_frames'):
        check_length(changed.context, getattr(changed, field, None), field)
    return changed


def check_length(context: int | None, frames: int | None, field: str = 'frames') -> None:
    """Raise ConfigError unless frames are left to generate after the context; None: not yet known."""
    if None not in (context, frames) and frames <= context:
        raise ConfigError(
            f'--{field} {frames} leaves nothing to generate after {context} given frames: use --{field} of at least '
            f'{context + 1}'
        )


def spelling(name: str, **changes: Any) -> str:
    """Return the base name with the changed settings as flags: 'shapes_five_frame --clips 512 --seeds 2'."""
    base, changes = _resolve(name, changes)
    differing = {field: value for field, value in changes.items() if getattr(PROTOCOLS[base], field) != value}
    flags = (
        f'--{FLAG_NAMES.get(field, field)} {str(value).removeprefix("i3d-")}' for field, value in differing.items()
    )
    return ' '.join([base, *flags])


def explained() -> str:
    """Return one line for each base name."""
    return '\n'.join(f'* {name}: {SUMMARIES[name]}' for name in PROTOCOLS)


def _resolve(name: str, changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    base, settings = OLDER_NAMES.get(name, (name, {}))
    if base not in PROTOCOLS:
        raise ConfigError(f'no protocol {name}; there are: {", ".join(PROTOCOLS)}')
    return base, settings | {field: value for field, value in changes.items() if value is not None}


def _check_distances(base: str, protocol: Distances) -> None:
    if protocol.clips < 2:
        raise ConfigError(
            f'protocol {base} compares sets of clips and needs --clips of at least 2, not {protocol.clips}: '
            f'for a single clip {TAKES_ANY_RUN}'
        )
    if (protocol.extractor == 'classifier') != (PROTOCOLS[base].extractor == 'classifier'):
        raise ConfigError(f'protocol {base} looks through the embedded classifier and takes no --i3d: leave it out')
