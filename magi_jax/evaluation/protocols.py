"""Evaluation protocols by name. A score is comparable only to scores of the same protocol.

A protocol has a base name and settings that may be changed: 'shapes_five_frame --clips 512 --seeds 2'.

Dimension key: N clips in each set of a distance, T frames of a clip, C context frames.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from magi_jax.config import ConfigError

Extractor = Literal['classifier', 'i3d-tf400', 'i3d-videogpt']
TAKES_ANY_RUN = 'use --protocol continuation, which takes any run'


@dataclasses.dataclass(frozen=True)
class FrameComparison:
    """Clips of any run, continued and compared with the real frames: `evaluation.continuation`.

    Attributes:
      clips: number of clips N; fewer if the split has fewer.
      seeds: number of continuations of each clip, each with another seed.
      frames: T, context included; None for `data.frames` of the run.
      context: C; None for 5, or fewer if clips are short or the tokenizer does not accept 5.
      interval: frame interval, in raw frames.
    """

    CHANGEABLE: ClassVar = ('clips', 'seeds', 'frames', 'context', 'interval')
    clips: int = 64
    seeds: int = 1
    frames: int | None = None
    context: int | None = None
    interval: int = 1


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Five real frames of `bouncing_objects/shapes`, continued at interval 1 on the first clips of the test split.

    `evaluation.prediction` compares frames with the real ones and finds objects in them.
    """

    CHANGEABLE: ClassVar = ('clips', 'frames', 'long_clips', 'long_frames')
    context: int = 5
    clips: int = 64
    frames: int = 16
    long_clips: int = 16
    long_frames: int = 101


@dataclasses.dataclass(frozen=True)
class CaptionedVideos:
    """Videos from the captions of the test split of `bouncing_objects/captions`, without context frames.

    `evaluation.text_steering` detects the objects in them.
    """

    CHANGEABLE: ClassVar = ('clips', 'seeds')
    clips: int = 192
    seeds: int = 3
    frames: int = 16
    context: int = 0


@dataclasses.dataclass(frozen=True)
class Distances:
    """A distance between features of N real clips and N generated ones: `evaluation.scoring`.

    The Fréchet distance uses unbiased covariances (N - 1). It is always reported with the floor, the real-vs-real
    baseline: the distance between the reference clips and N other real clips.

    Attributes:
      dataset: name of the dataset in reports.
      sources: data.source of runs that the protocol accepts; 'ucf101' also accepts versions such as 'ucf101/split1'.
      split: split of the reference clips.
      clips: number of clips N in each set.
      seeds: number of sets of N generated clips, each with another seed; mean and deviation are over these sets.
      frames: T, context included; context frames are scored as well. If a video is longer than the window of the
        network, the score is that of the last window, and the curve shows all windows.
      interval: frame interval of real and generated clips, in raw frames.
      context: C.
      context_of: clips whose first frames are continued. 'reference': the reference clips, as in published scores;
        generated and reference clips then share frames. 'others': the clips of the floor, so that a perfect model
        reaches the floor.
      side: height and width in pixels.
      extractor: name of the network.
      start: first frame of a clip in its video: any frame (random with a fixed seed), or the first.
      stills: k > 0 also scores every k-th frame, counted back from the last, as a clip of one repeated frame. Such
        scores depend on appearance but not on motion. 0 for none.
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
        """Raise ConfigError if a run on `source`, with frames of `size` (height, width), cannot be measured."""
        if not any(source == known or source.startswith(f'{known}/') for known in self.sources):
            raise ConfigError(
                f'protocol {name} needs a run on {" or ".join(self.sources)}, not on {source}: {TAKES_ANY_RUN}'
            )
        if size != (self.side, self.side):
            frames = f'{self.side}x{self.side} frames, but the run has {size[0]}x{size[1]}'
            raise ConfigError(f'protocol {name} needs {frames}: {TAKES_ANY_RUN}')
        if self.interval > max_interval:
            raise ConfigError(
                f'protocol {name} needs interval {self.interval}, but data.max_interval of the run is {max_interval}:'
                f' {TAKES_ANY_RUN}'
            )


# MAGI section 5.1 with 2,048 clips of 16 frames as in StyleGAN-V; MAGI trains and tests at interval 3.
_UCF101 = Distances(
    'UCF-101', ('ucf101', 'video_folder'), 'train', 2048, 4, 16, 3, 0, 'reference', 256, 'i3d-tf400'
)  # fmt: skip
# 5 context frames, 50,000 clips. MAGI does not state the frame size: 64 is usual; 128 is in the name of its protocol.
_KINETICS600 = Distances(
    'Kinetics-600', ('kinetics600', 'video_folder'), 'test', 50_000, 1, 16, 1, 5, 'reference', 64, 'i3d-tf400'
)  # fmt: skip
_SHAPES = Distances(
    'bouncing_objects/shapes', ('bouncing_objects/shapes',), 'test', 2048, 4, 16, 1, 5, 'others', 64, 'classifier'
)  # fmt: skip
_DIGITS = dataclasses.replace(_SHAPES, dataset='bouncing_objects/digits', sources=('bouncing_objects/digits',))

Protocol = FrameComparison | Continuations | CaptionedVideos | Distances
PROTOCOLS: dict[str, Protocol] = {
    'continuation': FrameComparison(),
    'bouncing_shapes': Continuations(),
    'captions_text': CaptionedVideos(),
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
    # MAGVIT: interval 1, four sets of 10,000 clips; its generator is class-conditional, ours is not.
    'magvit_ucf101': dataclasses.replace(_UCF101, clips=10_000, interval=1, side=128),
    'magvit_kinetics600': dataclasses.replace(_KINETICS600, seeds=4),
}
SUMMARIES = {
    'continuation': 'any run: PSNR and SSIM of continued clips, beside those of the repeated last context frame',
    'bouncing_shapes': 'the quickstart: PSNR of predicted frames, and objects that persist in long videos',
    'captions_text': 'captions: how often videos show the colour, shape and direction that their caption names',
    'shapes_five_frame': 'shapes: Fréchet distance in features of the embedded classifier, 5 context frames',
    'shapes_first_frame': 'shapes: the same distance, 1 context frame, for clips and single frames',
    'shapes_unconditional': 'shapes: the same distance, unconditional',
    'shapes_first_frame_long': 'shapes: the same distance, 1 context frame, videos of 128 frames',
    'digits_five_frame': 'digits: Fréchet distance in features of the embedded classifier, 5 context frames',
    'digits_first_frame': 'digits: the same distance, 1 context frame',
    'ucf101_unconditional': 'UCF-101: FVD as in MAGI and StyleGAN-V, unconditional; needs --weights of I3D',
    'ucf101_first_frame': 'UCF-101: FVD as in MAGI, 1 context frame; needs --weights',
    'kinetics600_five_frame_64px': 'Kinetics-600 at 64x64: FVD, 5 of 16 (or --frames 17) are context; needs --weights',
    'kinetics600_five_frame_128px': 'Kinetics-600 at 128x128: FVD, 5 context frames of 16; needs --weights',
    'magvit_ucf101': 'UCF-101: FVD as in MAGVIT, four sets of 10,000 clips; needs --weights',
    'magvit_kinetics600': 'Kinetics-600 at 64x64: FVD as in MAGVIT, four sets of clips; needs --weights',
}
FLAG_NAMES = {'context': 'context_frames', 'extractor': 'i3d'}  # field -> flag, if the names differ


def _older_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return {full name of an earlier version: (base name, changed settings)}."""
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
      ConfigError: the protocol does not exist, a field cannot be changed, or a value is not allowed.
    """
    base, changes = _resolve(name, changes)
    protocol = PROTOCOLS[base]
    for field in changes:
        if field not in protocol.CHANGEABLE:
            known = ', '.join(f'--{FLAG_NAMES.get(each, each)}' for each in protocol.CHANGEABLE)
            raise ConfigError(f'protocol {base} has no flag --{FLAG_NAMES.get(field, field)}: choose one of {known}')
    changed = dataclasses.replace(protocol, **changes)
    if isinstance(changed, Distances):
        _check_distances(base, changed)
    for field in ('frames', 'long_frames'):
        check_length(changed.context, getattr(changed, field, None), field)
    return changed


def check_length(context: int | None, frames: int | None, field: str = 'frames') -> None:
    """Raise ConfigError unless frames remain to be generated after the context. None means not yet known."""
    if None not in (context, frames) and frames <= context:
        raise ConfigError(
            f'--{field} {frames} leaves nothing to generate after {context} context frames: use --{field} {context + 1}'
            ' or more'
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
    """Return one line of explanation for each base name."""
    return '\n'.join(f'* {name}: {SUMMARIES[name]}' for name in PROTOCOLS)


def _resolve(name: str, changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    base, settings = OLDER_NAMES.get(name, (name, {}))
    if base not in PROTOCOLS:
        raise ConfigError(f'there is no protocol {name}: choose one of {", ".join(PROTOCOLS)}')
    return base, settings | {field: value for field, value in changes.items() if value is not None}


def _check_distances(base: str, protocol: Distances) -> None:
    if protocol.clips < 2:
        raise ConfigError(
            f'protocol {base} compares sets of clips, so --clips {protocol.clips} is too few: use --clips 2 or more; '
            f'for a single clip {TAKES_ANY_RUN}'
        )
    if (protocol.extractor == 'classifier') != (PROTOCOLS[base].extractor == 'classifier'):
        raise ConfigError(f'protocol {base} uses the embedded classifier and has no flag --i3d: remove it')
