"""The config of MAGI (arXiv 2501.12389): fields that only this system has, and its defaults."""

import dataclasses
from typing import Annotated, Literal

from magi_jax.config.groups import Config, HeadConfig, MaskingConfig, ModelConfig, SamplerConfig
from magi_jax.fields import ConfigError, Range


@dataclasses.dataclass(frozen=True)
class MagiHeadConfig(HeadConfig):
    """The diffusion head of MAGI, whose condition includes a learned position."""

    position_table: Literal['shared', 'per_frame'] = 'shared'  # A13: [N,D] or [T,N,D]


@dataclasses.dataclass(frozen=True)
class MagiModelConfig(ModelConfig):
    """The spatial-temporal transformer. Defaults: the paper's 20 blocks of width 1280, two layers each."""

    dropout: Annotated[float, Range(0, 0.999)] = 0.1
    teacher_forcing: Literal['complete', 'masked'] = 'complete'  # CTF or MTF
    mlp_layers: Literal['both', 'temporal'] = 'both'  # A10: layers of a block that have an MLP
    frame_table: Literal['position', 'frame', 'full'] = 'position'  # A5: learned [N,D], [D] or [T,N,D] per frame type
    shared_projection: bool = True  # A9: observed and masked frames share Linear(C -> D)
    noise_embedding: Literal['concat_channel', 'concat_token', 'add'] = 'concat_channel'  # A3
    embed_at: Literal['input', 'every_block'] = 'input'  # A11: where interval and time embeddings are added
    input_norm: bool = True  # LayerNorm before block 1 (MAR's z_proj_ln)
    head: MagiHeadConfig = MagiHeadConfig()


@dataclasses.dataclass(frozen=True)
class MagiMaskingConfig(MaskingConfig):
    """Masking, and noise on the observed frames."""

    # A1, A2: standard deviation of each noise level; level 0 is clean and trained as well
    noise_std: Annotated[tuple[Annotated[float, Range(0, 1000)], ...], Range(1, 1000)] = (
        0.0, 0.14, 0.28, 0.42, 0.56, 0.7,
    )  # fmt: skip
    noise_per: Literal['clip', 'frame'] = 'clip'  # A4
    noise_visible: bool = False  # A8: add noise to the visible tokens of masked frames as well (CTF)
    noise_masked_teacher: bool = True  # A14: add noise to the inputs of MTF
    # probability that the masked frames of a clip attend to no other frame, for guidance (GameNGen: 0.1)
    history_dropout: Annotated[float, Range(0, 1)] = 0.0


@dataclasses.dataclass(frozen=True)
class MagiSamplerConfig(SamplerConfig):
    """The sampling loop, and how the model observes finished frames."""

    long_video: Literal['slide', 'interpolate'] = 'slide'  # A12
    # temperature of a video's first two frames, which decide content and motion
    opening_temperature: Annotated[float, Range(0, 100)] = 1.0
    context_level: Annotated[int, Range(0, 999)] = 0  # A2: noise level embedded with finished frames
    context_noise: bool = False  # A2: add the noise of that level to finished frames


@dataclasses.dataclass(frozen=True)
class MagiConfig(Config):
    """An experiment of MAGI."""

    system: Literal['magi'] = 'magi'
    model: MagiModelConfig = MagiModelConfig()
    masking: MagiMaskingConfig = MagiMaskingConfig()
    sampler: MagiSamplerConfig = MagiSamplerConfig()

    def check_sampler(self) -> None:
        """Raise ConfigError if the sampler names an unknown noise level, or guidance was not trained (A15)."""
        sampler, levels = self.sampler, len(self.masking.noise_std)
        if sampler.context_level >= levels:
            raise ConfigError(
                f'sampler.context_level = {sampler.context_level} is not one of the {levels} levels of'
                f' masking.noise_std: choose sampler.context_level from 0 to {levels - 1}'
            )
        if sampler.guidance != 1 and not self.masking.history_dropout:
            raise ConfigError(
                f'sampler.guidance = {sampler.guidance} needs a run trained with masking.history_dropout > 0:'
                ' set sampler.guidance = 1, which turns it off'
            )
