"""The config of VideoMAR (arXiv 2506.14168): fields that only this system has, and its defaults.

The paper's text does not state every setting. A comment says where a default is ours.
"""

import dataclasses
from typing import Annotated, Literal

from magi_jax.config.groups import INF, Config, DataConfig, MaskingConfig, ModelConfig, SamplerConfig, TextConfig
from magi_jax.fields import ConfigError, Range


@dataclasses.dataclass(frozen=True)
class VideomarModelConfig(ModelConfig):
    """The transformer with joint attention over all tokens of all frames. Defaults: the paper's 36 blocks."""

    width: Annotated[int, Range(4, 65_536)] = 1536  # D
    blocks: Annotated[int, Range(1, 4096)] = 36
    heads: Annotated[int, Range(1, 4096)] = 24
    mlp_width: Annotated[int, Range(1, 2**18)] = 6144
    patch: Annotated[int, Range(1, 1024)] = 1
    # 'single': one sequence of complete frames and one masked frame (the paper); 'complete': MAGI's CTF
    teacher_forcing: Literal['single', 'complete'] = 'single'
    # channels of a head that rotate with frame, row and column number; the split is ours, the paper's is unknown
    rope_split: Annotated[tuple[Annotated[int, Range(0, 65_536)], ...], Range(3, 3)] = (32, 16, 16)
    rope_base: Annotated[float, Range(1)] = 10_000.0


@dataclasses.dataclass(frozen=True)
class VideomarMaskingConfig(MaskingConfig):
    """Masking for the next-frame diffusion loss: one target frame of each clip, never the first of several."""

    target_frames: Literal['every', 'one'] = 'one'
    first_frame_loss: bool = False


@dataclasses.dataclass(frozen=True)
class VideomarSamplerConfig(SamplerConfig):
    """The sampling loop. Defaults: the paper's progressive temperature, clipping and guidance."""

    temperature: Annotated[float, Range(0, 100)] = 0.9
    temperature_decay: Annotated[float, Range(0, 100)] = 1.0
    guidance: Annotated[float, Range(0, 100)] = 3.0  # without text it has no effect
    long_video: Literal['extend', 'slide'] = 'extend'  # 'extend': positions go on, and all frames stay in the cache
    token_clip: Annotated[float, Range(0, above=True, also=(INF,))] = 2.0


@dataclasses.dataclass(frozen=True)
class VideomarConfig(Config):
    """An experiment of VideoMAR."""

    system: Literal['videomar'] = 'videomar'
    data: DataConfig = DataConfig(max_interval=1)
    text: TextConfig = TextConfig()
    model: VideomarModelConfig = VideomarModelConfig()
    masking: VideomarMaskingConfig = VideomarMaskingConfig()
    sampler: VideomarSamplerConfig = VideomarSamplerConfig()

    @property
    def is_guided(self) -> bool:
        """True if samples are moved away from predictions without text."""
        return bool(self.text.encoder) and self.sampler.guidance != 1

    def check_sampler(self) -> None:
        """Raise ConfigError if guidance away from no text was not trained."""
        if self.text.encoder and self.sampler.guidance != 1 and not self.text.dropout:
            raise ConfigError(
                f'sampler.guidance = {self.sampler.guidance} needs a run trained with text.dropout > 0:'
                ' set sampler.guidance = 1, which turns it off'
            )
