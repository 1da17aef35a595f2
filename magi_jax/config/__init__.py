"""The schema of an experiment. `groups.py` holds what systems share, `magi.py` and `videomar.py` what is theirs."""

from magi_jax.config.groups import (
    AutoencoderLossConfig,
    Config,
    DataConfig,
    HeadConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    Remat,
    SamplerConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
)
from magi_jax.config.magi import MagiConfig, MagiHeadConfig, MagiMaskingConfig, MagiModelConfig, MagiSamplerConfig
from magi_jax.config.systems import (
    SYSTEMS,
    default,
    field_help,
    from_config_dict,
    override,
    replace_fields,
    sampler_help,
    to_config_dict,
)
from magi_jax.config.videomar import (
    VideomarConfig,
    VideomarMaskingConfig,
    VideomarModelConfig,
    VideomarSamplerConfig,
)
from magi_jax.fields import ConfigError

__all__ = [
    'SYSTEMS',
    'AutoencoderLossConfig',
    'Config',
    'ConfigError',
    'DataConfig',
    'HeadConfig',
    'MagiConfig',
    'MagiHeadConfig',
    'MagiMaskingConfig',
    'MagiModelConfig',
    'MagiSamplerConfig',
    'MaskingConfig',
    'MeshConfig',
    'ModelConfig',
    'OptimConfig',
    'Remat',
    'SamplerConfig',
    'TextConfig',
    'TokenizerConfig',
    'TrainConfig',
    'VideomarConfig',
    'VideomarMaskingConfig',
    'VideomarModelConfig',
    'VideomarSamplerConfig',
    'default',
    'field_help',
    'from_config_dict',
    'override',
    'replace_fields',
    'sampler_help',
    'to_config_dict',
]
