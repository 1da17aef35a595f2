"""The schema of an experiment: frozen dataclasses, filled once from a ConfigDict.

A config file (`configs/*.py`) starts from `default()`, sets what differs and returns the ConfigDict; `from_config_dict`
turns it into a `Config`. A field that is unknown, of the wrong type or out of its range is a `ConfigError` that names
it. What must hold between fields is in `config_checks.py`. Fields marked A1..A23 settle an ambiguity of the MAGI paper
(arXiv 2501.12389): the default is the reading we recommend.
"""

import dataclasses
import json
import math
import typing
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from magi_jax.fields import PATH, ConfigError, Range, build, convert, describe

INF, INT32 = math.inf, 2**31 - 1
Remat = Literal['none', 'dots', 'named', 'block', 'offload']


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which videos, and how clips are cut from them."""

    source: str = 'bouncing_objects/shapes'  # a TFDS name, or 'video_folder'
    path: Annotated[str, PATH] = ''  # TFDS data_dir or the folder of videos; '' = ~/.cache/magi_jax
    train_split: str = 'train'
    eval_split: str = 'validation'
    height: Annotated[int, Range(1, 8192)] = 64
    width: Annotated[int, Range(1, 8192)] = 64
    frames: Annotated[int, Range(1, 65_536)] = 16  # raw frames of a clip
    # A17: first frames that are encoded alone, as a context is: omni's latents see the future
    context_frames: Annotated[int, Range(0, 65_536)] = 0
    # A6: interval ~ U{1..min(max_interval, what the video allows)}, labelled with the true one
    max_interval: Annotated[int, Range(1, 65_536)] = 25
    flip_horizontal: bool = True
    flip_vertical: bool = False
    batch_size: Annotated[int, Range(1, 2**20)] = 128  # clips of one optimizer step, over all hosts
    threads: Annotated[int, Range(0, 1024)] = 2


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The frozen video <-> latent map, or the one being trained when objective = 'autoencoder'."""

    # Ours, none, and the published ones (tokenizers/published.py), whose folders launch.convert_weights writes.
    kind: Literal['autoencoder_kl', 'identity', 'sd_vae', 'kl16', 'cosmos_cv8x8x8', 'cosmos_cv4x8x8', 'omni'] = (
        'autoencoder_kl'
    )
    # folder of a finished autoencoder run or of converted weights (weights + latent statistics)
    path: Annotated[str, PATH] = ''
    channels: Annotated[int, Range(1, 65_536)] = 4  # latent channels c
    downsample: Annotated[int, Range(1, 1024)] = 8  # pixels per latent, each axis of a frame
    width: Annotated[int, Range(1, 65_536)] = 64  # convolution width; of published kinds: of their first level
    # of autoencoder_kl: residual blocks on the latents' grid; it runs in every generator step
    encoder_blocks: Annotated[int, Range(0, 1024)] = 1
    decoder_blocks: Annotated[int, Range(0, 1024)] = 2  # of autoencoder_kl
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # in which a frozen tokenizer computes; norms stay in float32


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """MAR's diffusion head and its diffusion process (paper: 3 blocks of width 1024, noise prediction)."""

    width: Annotated[int, Range(1, 65_536)] = 1024
    blocks: Annotated[int, Range(0, 1024)] = 3
    # independent (t, noise) draws per token and step, MAR's diffusion_batch_mul
    repeats: Annotated[int, Range(1, 4096)] = 4
    timesteps: Annotated[int, Range(2, 1_000_000)] = 1000
    prediction: Literal['noise', 'clean', 'velocity'] = 'noise'
    bound_weight: Annotated[float, Range(0)] = 1.0  # of the variational bound, which trains the variance half (MAR: 1)
    readout: bool = False  # adds a linear map of the condition to the prediction: a direct way for its gradient
    position_table: Literal['shared', 'per_frame'] = 'shared'  # A13: [N,D] or [T,N,D]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The spatial-temporal transformer. Defaults: the paper's 20 blocks of width 1280."""

    width: Annotated[int, Range(4, 65_536)] = 1280  # D
    blocks: Annotated[int, Range(1, 4096)] = 20  # each one spatial and one temporal layer
    heads: Annotated[int, Range(1, 4096)] = 16
    mlp_width: Annotated[int, Range(1, 2**18)] = 5120
    patch: Annotated[int, Range(1, 1024)] = 2  # latents per token, each axis
    dropout: Annotated[float, Range(0, 0.999)] = 0.1
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

    ratio_mean: Annotated[float, Range(-10, 10)] = 1.0
    ratio_std: Annotated[float, Range(0, 10, above=True)] = 0.25
    ratio_min: Annotated[float, Range(0, 1)] = 0.7
    ratio_max: Annotated[float, Range(0, 1, above=True)] = 1.0
    draw_per: Literal['frame', 'clip', 'batch'] = 'frame'  # A7: 'clip': one ratio and order a clip; 'batch': one ratio
    # A1, A2: std of each level; 0 = clean, trained
    noise_std: Annotated[tuple[Annotated[float, Range(0, 1000)], ...], Range(1, 1000)] = (
        0.0, 0.14, 0.28, 0.42, 0.56, 0.7,
    )  # fmt: skip
    noise_per: Literal['clip', 'frame'] = 'clip'  # A4
    noise_visible: bool = False  # A8: also on the visible tokens of masked frames (CTF)
    noise_masked_teacher: bool = True  # A14: noise on the inputs of MTF
    first_frame_loss: bool = True  # A22
    posterior_noise: bool = True  # latents are posterior samples (MAR), not means
    # how often a clip's masked frames see no other frame, for guidance (GameNGen: 0.1)
    history_dropout: Annotated[float, Range(0, 1)] = 0.0


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """Loss of the KL autoencoder, on random crops of single frames."""

    l1: Annotated[float, Range(0)] = 0.0
    l2: Annotated[float, Range(0)] = 1.0
    kl: Annotated[float, Range(0)] = 3e-4  # per latent value, in nats
    crop: Annotated[int, Range(0, 8192)] = 48  # pixels; 0 = whole frames


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW as in MAR, its weight decay sparing biases, norms and the diffusion head; or Muon."""

    # muon: hidden matrices follow their orthogonalised momentum, the rest AdamW (training/optim.py)
    name: Literal['adamw', 'muon'] = 'adamw'
    learning_rate: Annotated[float, Range(0)] = 1e-4
    warmup_steps: Annotated[int, Range(0, INT32)] = 10_000
    schedule: Literal['constant', 'cosine', 'linear'] = 'constant'  # A23
    decay_fraction: Annotated[float, Range(0, 1)] = 1.0  # last part of training over which cosine or linear falls to 0
    b1: Annotated[float, Range(0, 1, below=True)] = 0.9
    b2: Annotated[float, Range(0, 1, below=True)] = 0.95
    eps: Annotated[float, Range(0, above=True)] = 1e-8
    weight_decay: Annotated[float, Range(0)] = 0.02
    clip_norm: Annotated[float, Range(0, above=True, also=(INF,))] = 3.0
    ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.9999
    ema_warmup: bool = False  # decay min(ema_decay, (1+n)/(10+n)): for short runs
    accumulate: Annotated[int, Range(1, 2**20)] = 1  # micro-batches per optimizer step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop's lengths and schedules, in optimizer steps."""

    steps: Annotated[int, Range(0, INT32)] = 145_000
    log_every: Annotated[int, Range(1, INT32)] = 50
    eval_every: Annotated[int, Range(1, INT32)] = 5_000
    eval_batches: Annotated[int, Range(1, INT32)] = 8
    sample_every: Annotated[int, Range(1, INT32)] = 10_000
    checkpoint_every: Annotated[int, Range(1, INT32)] = 5_000
    keep_checkpoints: Annotated[int, Range(1, INT32)] = 3
    compute_dtype: Literal['bfloat16', 'float32'] = 'bfloat16'
    remat: Remat = 'none'  # what the backward pass computes again: layers/blocks.py POLICIES
    # blocks in one turn of the loop over depth; all of them: fewer copies, longer compilation
    unroll: Annotated[int, Range(1, 4096)] = 1


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The KV-cached sampling loop. `x0_clip = inf` with `start = 999` is the paper's exact recipe."""

    mask_steps: Annotated[int, Range(1, 65_536)] = 64  # K
    denoise_steps: Annotated[int, Range(2, 1_000_000)] = 100
    solver: Literal['ancestral', 'ddim', 'dpm++'] = 'ancestral'  # paper: ancestral; the others get by with fewer steps
    # A15: scales the noise of ancestral steps; the start of the others, which add none
    temperature: Annotated[float, Range(0, 100)] = 1.0
    # n-th generated frame: temperature + this * 10^-n (VideoMAR: 0.9 and 1)
    temperature_decay: Annotated[float, Range(0, 100)] = 0.0
    # of a video's first two frames: what there is, and how it moves
    opening_temperature: Annotated[float, Range(0, 100)] = 1.0
    # 1 = off; above, away from what no history suggests: needs masking.history_dropout (A15)
    guidance: Annotated[float, Range(0, 100)] = 1.0
    guidance_schedule: Literal['linear', 'constant'] = 'linear'  # linear: grows with the revealed part (MAR)
    # bound on predicted clean tokens, in standard deviations of the latents; inf = none
    x0_clip: Annotated[float, Range(0, above=True, also=(INF,))] = 3.0
    start: Annotated[int, Range(1, 999_999)] = 999  # first diffusion timestep
    spacing: Literal['even', 'trailing'] = 'even'  # of the timesteps: even: down to 0 (MAR); trailing: none near 0
    long_video: Literal['slide', 'interpolate'] = 'slide'  # A12: how frames beyond the training length get positions
    keep_frames: Annotated[int, Range(1, 65_536)] = 8  # 'slide': frames kept as context when the window is full
    context_level: Annotated[int, Range(0, 999)] = 0  # A2: noise level that finished frames are labelled with
    context_noise: bool = False  # A2: and whether that noise is really added


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 = all that remain."""

    data: Annotated[int, Range(1, 2**20, also=(-1,))] = -1
    fsdp: Annotated[int, Range(1, 2**20, also=(-1,))] = 1
    sequence: Annotated[int, Range(1, 2**20, also=(-1,))] = 1
    tensor: Annotated[int, Range(1, 2**20, also=(-1,))] = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
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
    """Return the default experiment as a mutable ConfigDict: the start of every config file."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """Return `Config` as a ConfigDict, the inverse of `from_config_dict`."""
    return ConfigDict(dataclasses.asdict(config), type_safe=False)


def from_config_dict(values: ConfigDict | dict) -> Config:
    """Return the `Config` of a ConfigDict, or of the plain dict of a saved config.json.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type, choice or range.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    return build(Config, plain, 'config')


def override(group: Any, assignments: list[str]) -> Any:
    """Return a config group with some fields replaced by texts such as 'temperature=0.9'.

    Raises:
      ConfigError: a text without '=', an unknown field, or a value that is not of its type or range.
    """
    hints, changes = typing.get_type_hints(type(group)), {}
    for text in assignments:
        name, equals, value = text.partition('=')
        if not equals or name not in hints:
            raise ConfigError(f'{text!r} is not FIELD=VALUE: choose a field of {", ".join(hints)}')
        try:
            parsed = value if hints[name] is str or typing.get_origin(hints[name]) is Literal else json.loads(value)
        except ValueError:  # not JSON, or an int of thousands of digits
            parsed = float(value) if value in ('inf', '-inf', 'nan') else value
        changes[name] = parsed
    return replace_fields(group, changes)


def replace_fields(group: Any, changes: dict[str, Any]) -> Any:
    """Return a config group with some fields replaced, each checked as `from_config_dict` does.

    Raises:
      ConfigError: a field is unknown, or its value is not of the declared type, choice or range.
    """
    hints = typing.get_type_hints(type(group), include_extras=True)
    if unknown := [name for name in changes if name not in hints]:
        raise ConfigError(f'unknown field {unknown[0]!r}: choose one of {", ".join(hints)}')
    return dataclasses.replace(group, **{name: convert(hints[name], value, name) for name, value in changes.items()})


def field_help(group: type) -> dict[str, str]:
    """Return what each field of a config group may hold, in words: {name: 'from 1 to 65536'}."""
    hints = typing.get_type_hints(group, include_extras=True)
    return {name: describe(hint) for name, hint in hints.items()}
