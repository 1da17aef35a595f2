"""The schema of an experiment: frozen dataclasses, filled once from a ConfigDict.

A config file (`configs/*.py`) starts from `default()`, sets what differs and returns the ConfigDict; `from_config_dict`
turns it into a `Config`. An unknown or ill-typed field is a `ConfigError` that names it. Fields marked A1..A23 settle
an ambiguity of the MAGI paper (arXiv 2501.12389): the default is the reading we recommend.
"""

import dataclasses
import json
import typing
from typing import Any, Literal

from ml_collections import ConfigDict

Remat = Literal['none', 'dots', 'named', 'block', 'offload']


class ConfigError(ValueError):
    """A config that cannot be used; the message names the field and the way out."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which videos, and how clips are cut from them."""

    source: str = 'bouncing_objects/shapes'  # a TFDS name, or 'video_folder'
    path: str = ''  # TFDS data_dir or the folder of videos; '' = ~/.cache/magi_jax
    train_split: str = 'train'
    eval_split: str = 'validation'
    height: int = 64
    width: int = 64
    frames: int = 16  # raw frames of a clip
    context_frames: int = 0  # A17: first frames that are encoded alone, as a context is: omni's latents see the future
    max_interval: int = 25  # A6: interval ~ U{1..min(max_interval, what the video allows)}, labelled with the true one
    flip_horizontal: bool = True
    flip_vertical: bool = False
    batch_size: int = 128  # clips of one optimizer step, over all hosts
    threads: int = 2


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The frozen video <-> latent map, or the one being trained when objective = 'autoencoder'."""

    # Ours, none, and the published ones (tokenizers/published.py), whose folders launch.convert_weights writes.
    kind: Literal['autoencoder_kl', 'identity', 'sd_vae', 'kl16', 'cosmos_cv8x8x8', 'cosmos_cv4x8x8', 'omni'] = (
        'autoencoder_kl'
    )
    path: str = ''  # folder of a finished autoencoder run or of converted weights (weights + latent statistics)
    channels: int = 4  # latent channels c
    downsample: int = 8  # pixels per latent, each axis of a frame
    width: int = 64  # convolution width; of published kinds: of their first level
    encoder_blocks: int = 1  # of autoencoder_kl: residual blocks on the latents' grid; it runs in every generator step
    decoder_blocks: int = 2  # of autoencoder_kl
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # in which a frozen tokenizer computes; norms stay in float32


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """MAR's diffusion head and its diffusion process (paper: 3 blocks of width 1024, noise prediction)."""

    width: int = 1024
    blocks: int = 3
    repeats: int = 4  # independent (t, noise) draws per token and step, MAR's diffusion_batch_mul
    timesteps: int = 1000
    prediction: Literal['noise', 'clean', 'velocity'] = 'noise'
    bound_weight: float = 1.0  # of the variational bound, which trains the variance half (MAR: 1)
    readout: bool = False  # adds a linear map of the condition to the prediction: a direct way for its gradient
    position_table: Literal['shared', 'per_frame'] = 'shared'  # A13: [N,D] or [T,N,D]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The spatial-temporal transformer. Defaults: the paper's 20 blocks of width 1280."""

    width: int = 1280  # D
    blocks: int = 20  # each one spatial and one temporal layer
    heads: int = 16
    mlp_width: int = 5120
    patch: int = 2  # latents per token, each axis
    dropout: float = 0.1
    teacher_forcing: Literal['complete', 'masked'] = 'complete'  # CTF or MTF
    mlp_layers: Literal['both', 'temporal'] = 'both'  # A10: which layers of a block carry an MLP
    frame_table: Literal['position', 'frame', 'full'] = 'position'  # A5: learned [N,D], [D] or [T,N,D] per frame type
    shared_projection: bool = True  # A9: observed and masked frames share Linear(C -> D)
    noise_embedding: Literal['concat_channel', 'concat_token', 'add'] = 'concat_channel'  # A3
    embed_at: Literal['input', 'every_block'] = 'input'  # A11: where interval and temporal positions are added
    input_norm: bool = True  # LayerNorm before block 1 (MAR's z_proj_ln)
    head: HeadConfig = HeadConfig()


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """What is hidden and what is disturbed in training."""

    ratio_mean: float = 1.0
    ratio_std: float = 0.25
    ratio_min: float = 0.7
    ratio_max: float = 1.0
    draw_per: Literal['frame', 'clip', 'batch'] = 'frame'  # A7: 'clip': one ratio and order a clip; 'batch': one ratio
    noise_std: tuple[float, ...] = (0.0, 0.14, 0.28, 0.42, 0.56, 0.7)  # A1, A2: std of each level; 0 = clean, trained
    noise_per: Literal['clip', 'frame'] = 'clip'  # A4
    noise_visible: bool = False  # A8: also on the visible tokens of masked frames (CTF)
    noise_masked_teacher: bool = True  # A14: noise on the inputs of MTF
    first_frame_loss: bool = True  # A22
    posterior_noise: bool = True  # latents are posterior samples (MAR), not means
    history_dropout: float = 0.0  # how often a clip's masked frames see no other frame, for guidance (GameNGen: 0.1)


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """Loss of the KL autoencoder, on random crops of single frames."""

    l1: float = 0.0
    l2: float = 1.0
    kl: float = 3e-4  # per latent value, in nats
    crop: int = 48  # pixels; 0 = whole frames


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW as in MAR, its weight decay sparing biases, norms and the diffusion head; or Muon."""

    # muon: hidden matrices follow their orthogonalised momentum, the rest AdamW (training/optim.py)
    name: Literal['adamw', 'muon'] = 'adamw'
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    schedule: Literal['constant', 'cosine', 'linear'] = 'constant'  # A23
    decay_fraction: float = 1.0  # last part of training over which cosine or linear falls to 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False  # decay min(ema_decay, (1+n)/(10+n)): for short runs
    accumulate: int = 1  # micro-batches per optimizer step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop's lengths and schedules, in optimizer steps."""

    steps: int = 145_000
    log_every: int = 50
    eval_every: int = 5_000
    eval_batches: int = 8
    sample_every: int = 10_000
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 3
    compute_dtype: Literal['bfloat16', 'float32'] = 'bfloat16'
    remat: Remat = 'none'  # what the backward pass computes again: layers/blocks.py POLICIES
    unroll: int = 1  # blocks in one turn of the loop over depth; all of them: fewer copies, longer compilation


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The KV-cached sampling loop. `x0_clip = inf` with `start = 999` is the paper's exact recipe."""

    mask_steps: int = 64  # K
    denoise_steps: int = 100
    solver: Literal['ancestral', 'ddim', 'dpm++'] = 'ancestral'  # paper: ancestral; the others get by with fewer steps
    temperature: float = 1.0  # A15: scales the noise of ancestral steps; the start of the others, which add none
    temperature_decay: float = 0.0  # n-th generated frame: temperature + this * 10^-n (VideoMAR: 0.9 and 1)
    opening_temperature: float = 1.0  # of a video's first two frames: what there is, and how it moves
    guidance: float = 1.0  # 1 = off; above, away from what no history suggests: needs masking.history_dropout (A15)
    guidance_schedule: Literal['linear', 'constant'] = 'linear'  # linear: grows with the revealed part (MAR)
    x0_clip: float = 3.0  # bound on predicted clean tokens, in standard deviations of the latents; inf = none
    start: int = 999  # first diffusion timestep
    spacing: Literal['even', 'trailing'] = 'even'  # of the timesteps: even: down to 0 (MAR); trailing: none near 0
    long_video: Literal['slide', 'interpolate'] = 'slide'  # A12: how frames beyond the training length get positions
    keep_frames: int = 8  # 'slide': frames kept as context when the window is full
    context_level: int = 0  # A2: noise level that finished frames are labelled with
    context_noise: bool = False  # A2: and whether that noise is really added


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 = all that remain."""

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 0
    objective: Literal['masked_diffusion', 'autoencoder'] = 'masked_diffusion'
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    autoencoder_loss: AutoencoderLossConfig = AutoencoderLossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sampler: SamplerConfig = SamplerConfig()
    mesh: MeshConfig = MeshConfig()


def default() -> ConfigDict:
    """The default experiment as a mutable ConfigDict: the start of every config file."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """`Config` -> ConfigDict, the inverse of `from_config_dict`."""
    return ConfigDict(dataclasses.asdict(config), type_safe=False)


def from_config_dict(values: ConfigDict | dict) -> Config:
    """ConfigDict (or the plain dict of a saved config.json) -> `Config`.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type or choice.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    return _build(Config, plain, 'config')


def override(group: Any, assignments: list[str]) -> Any:
    """A config group with some fields replaced by texts such as 'temperature=0.9'.

    Raises:
      ConfigError: a text without '=', an unknown field, or a value that is not of its type.
    """
    hints, changes = typing.get_type_hints(type(group)), {}
    for text in assignments:
        name, equals, value = text.partition('=')
        if not equals or name not in hints:
            raise ConfigError(f'{text!r} is not FIELD=VALUE with a field of {", ".join(hints)}')
        try:
            parsed = value if hints[name] is str or typing.get_origin(hints[name]) is Literal else json.loads(value)
        except json.JSONDecodeError:
            parsed = float(value) if value in ('inf', 'nan') else value
        changes[name] = parsed
    return replace_fields(group, changes)


def replace_fields(group: Any, changes: dict[str, Any]) -> Any:
    """Return a config group with some fields replaced, each checked as `from_config_dict` does.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type or choice.
    """
    hints = typing.get_type_hints(type(group))
    if unknown := [name for name in changes if name not in hints]:
        raise ConfigError(f'unknown field {unknown[0]!r}: choose one of {", ".join(hints)}')
    return dataclasses.replace(group, **{name: _convert(hints[name], value, name) for name, value in changes.items()})


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f'{path} must be a group of fields, not {values!r}')
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(f'unknown config field {path}.{name}; {path} has: {", ".join(hints)}')
    return cls(**{name: _convert(hints[name], value, f'{path}.{name}') for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as `hint`; an int is a good float, a list a good tuple, nothing else is bent."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f'{path} = {value!r} is not one of {", ".join(map(repr, args))}')
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_convert(args[0], item, f'{path}[{i}]') for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    raise ConfigError(f'{path} = {value!r} must be of type {getattr(hint, "__name__", hint)}')
