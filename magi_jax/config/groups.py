"""The groups of an experiment's config that several systems share, as frozen dataclasses.

A field that is unknown, of the wrong type or out of range raises a `ConfigError` that names it. `config_checks.py`
checks fields against each other. Fields marked A1..A23 settle an ambiguity of the MAGI paper (arXiv 2501.12389); the
default is the recommended reading.
"""

import dataclasses
import math
from typing import Annotated, Literal

from magi_jax.fields import PATH, Range

INF, INT32 = math.inf, 2**31 - 1
Remat = Literal['none', 'dots', 'named', 'block', 'offload']


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Dataset, and how clips are cut from its videos."""

    source: str = 'bouncing_objects/shapes'  # a TFDS name, or 'video_folder'
    path: Annotated[str, PATH] = ''  # TFDS data_dir or folder of videos; '' = ~/.cache/magi_jax
    train_split: str = 'train'
    eval_split: str = 'validation'
    height: Annotated[int, Range(1, 8192)] = 64
    width: Annotated[int, Range(1, 8192)] = 64
    frames: Annotated[int, Range(1, 65_536)] = 16  # video frames of a clip
    # A17: first frames that are encoded separately, as in sampling; omni encodes a frame with the frames after it
    context_frames: Annotated[int, Range(0, 65_536)] = 0
    # A6: interval ~ U{1..min(max_interval, largest that fits the video)}; the label is the interval drawn
    max_interval: Annotated[int, Range(1, 65_536)] = 25
    flip_horizontal: bool = True
    flip_vertical: bool = False
    batch_size: Annotated[int, Range(1, 2**20)] = 128  # clips per optimizer step, on all hosts together
    threads: Annotated[int, Range(0, 1024)] = 2


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The frozen tokenizer between videos and latents, or the one being trained if objective = 'autoencoder'."""

    # autoencoder_kl is trained here, identity keeps pixels, launch.convert_weights imports the published ones
    kind: Literal[
        'autoencoder_kl', 'identity', 'sd_vae', 'kl16', 'cosmos_cv8x8x8', 'cosmos_cv4x8x8', 'cosmos_cv8x16x16', 'omni'
    ] = 'autoencoder_kl'
    # tokenizer folder of a finished autoencoder run or of converted weights: weights and latent statistics
    path: Annotated[str, PATH] = ''
    channels: Annotated[int, Range(1, 65_536)] = 4  # latent channels c
    downsample: Annotated[int, Range(1, 1024)] = 8  # pixels per latent along each axis of a frame
    width: Annotated[int, Range(1, 65_536)] = 64  # convolution width; for published kinds, width of the first level
    # autoencoder_kl only: residual blocks at latent resolution; the encoder runs in every step of generator training
    encoder_blocks: Annotated[int, Range(0, 1024)] = 1
    decoder_blocks: Annotated[int, Range(0, 1024)] = 2  # autoencoder_kl only
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # compute dtype of a frozen tokenizer; norms stay in float32


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Text states, which launch.encode_text stores beside the videos."""

    # words: the small frozen encoder of text_encoders/words.py; else the name or folder of a Hugging Face model
    encoder: Annotated[str, PATH] = ''  # '' = no text
    length: Annotated[int, Range(1, 65_536)] = 300  # S, states of a text; longer texts are truncated
    width: Annotated[int, Range(1, 65_536)] = 1536  # E
    dropout: Annotated[float, Range(0, 1)] = 0.1  # probability that a clip has no text in a training step, for guidance


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """MAR's diffusion head and its diffusion process (papers: 3 blocks of width 1024, noise prediction)."""

    width: Annotated[int, Range(1, 65_536)] = 1024
    blocks: Annotated[int, Range(0, 1024)] = 3
    # independent (t, noise) samples per token and step; MAR's diffusion_batch_mul
    repeats: Annotated[int, Range(1, 4096)] = 4
    timesteps: Annotated[int, Range(2, 1_000_000)] = 1000
    prediction: Literal['noise', 'clean', 'velocity'] = 'noise'
    # weight of the variational bound, which trains the variance half (MAR: 1)
    bound_weight: Annotated[float, Range(0)] = 1.0
    readout: bool = False  # add a linear map of the condition to the prediction, as a shortcut for its gradient


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a transformer over the tokens of a video. Each system declares its own fields and defaults."""

    width: Annotated[int, Range(4, 65_536)] = 1280  # D
    blocks: Annotated[int, Range(1, 4096)] = 20
    heads: Annotated[int, Range(1, 4096)] = 16
    mlp_width: Annotated[int, Range(1, 2**18)] = 5120
    patch: Annotated[int, Range(1, 1024)] = 2  # latents per token along each axis
    # complete (CTF), masked (MTF), or one masked frame after complete ones; each system declares its choices
    teacher_forcing: Literal['complete', 'masked', 'single'] = 'complete'
    head: HeadConfig = HeadConfig()


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """The frames and tokens that are predicted in training (MAR)."""

    ratio_mean: Annotated[float, Range(-10, 10)] = 1.0
    ratio_std: Annotated[float, Range(0, 10, above=True)] = 0.25
    ratio_min: Annotated[float, Range(0, 1)] = 0.7
    ratio_max: Annotated[float, Range(0, 1, above=True)] = 1.0
    # A7: 'clip': one ratio and order per clip; 'batch': one ratio per batch
    draw_per: Literal['frame', 'clip', 'batch'] = 'frame'
    # frames with a loss: all, or one random frame of each clip (VideoMAR's next-frame diffusion loss)
    target_frames: Literal['every', 'one'] = 'every'
    first_frame_loss: bool = True  # A22: the first frame has a loss; the only frame of a clip always has one
    posterior_noise: bool = True  # latents are posterior samples (MAR), not means

    # Systems that train on noised observations declare these as fields; the others observe clean frames.
    @property
    def noise_std(self) -> tuple[float, ...]:
        """Standard deviation of each noise level."""
        return (0.0,)

    @property
    def history_dropout(self) -> float:
        """Probability that the masked frames of a clip attend to no other frame."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """Loss of the KL autoencoder, on random crops of single frames."""

    l1: Annotated[float, Range(0)] = 0.0
    l2: Annotated[float, Range(0)] = 1.0
    kl: Annotated[float, Range(0)] = 3e-4  # per latent value, in nats
    crop: Annotated[int, Range(0, 8192)] = 48  # pixels; 0 = whole frames


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW as in MAR, without weight decay on biases, norms and the diffusion head; or Muon."""

    # muon: orthogonalised momentum for hidden matrices, AdamW for other parameters (training/optim.py)
    name: Literal['adamw', 'muon'] = 'adamw'
    learning_rate: Annotated[float, Range(0)] = 1e-4
    warmup_steps: Annotated[int, Range(0, INT32)] = 10_000
    schedule: Literal['constant', 'cosine', 'linear'] = 'constant'  # A23
    decay_fraction: Annotated[float, Range(0, 1)] = 1.0  # last fraction of training, which cosine and linear cover
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
    """Length and schedules of training, in optimizer steps."""

    steps: Annotated[int, Range(0, INT32)] = 145_000
    log_every: Annotated[int, Range(1, INT32)] = 50
    eval_every: Annotated[int, Range(1, INT32)] = 5_000
    eval_batches: Annotated[int, Range(1, INT32)] = 8
    sample_every: Annotated[int, Range(1, INT32)] = 10_000
    checkpoint_every: Annotated[int, Range(1, INT32)] = 5_000
    keep_checkpoints: Annotated[int, Range(1, INT32)] = 3
    compute_dtype: Literal['bfloat16', 'float32'] = 'bfloat16'
    remat: Remat = 'none'  # what the backward pass recomputes: POLICIES in layers/trunk.py
    # blocks per iteration of the loop over depth; more need fewer copies and compile longer
    unroll: Annotated[int, Range(1, 4096)] = 1


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The KV-cached sampling loop. `x0_clip = inf` with `start = 999` is MAGI's exact recipe."""

    mask_steps: Annotated[int, Range(1, 65_536)] = 64  # K
    denoise_steps: Annotated[int, Range(2, 1_000_000)] = 100
    solver: Literal['ancestral', 'ddim', 'dpm++'] = 'ancestral'  # papers: ancestral; the others need fewer steps
    # A15: scale of the noise in ancestral steps; for the other solvers, scale of the initial noise
    temperature: Annotated[float, Range(0, 100)] = 1.0
    # the n-th generated frame has temperature + temperature_decay * 10^-n (VideoMAR: 0.9 and 1)
    temperature_decay: Annotated[float, Range(0, 100)] = 0.0
    # temperature falls by this much, linearly over the generated frames
    temperature_drop: Annotated[float, Range(0, 100)] = 0.0
    guidance: Annotated[float, Range(0, 100)] = 1.0  # 1 = off
    guidance_schedule: Literal['linear', 'constant'] = 'linear'  # linear: grows with the revealed fraction (MAR)
    # bound on predicted clean tokens, in standard deviations of the latents; inf = none
    x0_clip: Annotated[float, Range(0, above=True, also=(INF,))] = 3.0
    start: Annotated[int, Range(1, 999_999)] = 999  # first diffusion timestep
    spacing: Literal['even', 'trailing'] = 'even'  # of timesteps; even: down to 0 (MAR); trailing: none near 0
    # positions of frames beyond the trained length; 'slide' restarts a full window from its last frames
    long_video: Literal['slide', 'interpolate', 'extend'] = 'slide'
    keep_frames: Annotated[int, Range(1, 65_536)] = 8  # 'slide': frames that stay as context when the window is full
    # bound on sampled tokens after the first generated frame, in standard deviations of the latents; inf = none
    token_clip: Annotated[float, Range(0, above=True, also=(INF,))] = INF

    # Systems whose model observes noise declare these as fields.
    @property
    def context_level(self) -> int:
        """Noise level embedded with finished frames."""
        return 0

    @property
    def context_noise(self) -> bool:
        """True if the noise of that level is added to finished frames."""
        return False

    @property
    def opening_temperature(self) -> float | None:
        """Temperature of a video's first two frames; None = as `temperature` says."""
        return None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; -1 = all remaining devices."""

    data: Annotated[int, Range(1, 2**20, also=(-1,))] = -1
    fsdp: Annotated[int, Range(1, 2**20, also=(-1,))] = 1
    sequence: Annotated[int, Range(1, 2**20, also=(-1,))] = 1
    tensor: Annotated[int, Range(1, 2**20, also=(-1,))] = 1


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a stage of a curriculum sets in the config; 0 or '' = the value of the config.

    `STAGE_FIELDS` in `stages.py` lists the fields of the config that these replace.
    """

    steps: Annotated[int, Range(0, INT32)] = 0  # optimizer steps of the stage
    frames: Annotated[int, Range(0, 65_536)] = 0
    height: Annotated[int, Range(0, 8192)] = 0
    width: Annotated[int, Range(0, 8192)] = 0
    source: str = ''  # for a dataset of latents, which has one size
    batch_size: Annotated[int, Range(0, 2**20)] = 0
    accumulate: Annotated[int, Range(0, 2**20)] = 0
    learning_rate: Annotated[float, Range(0)] = 0.0
    warmup_steps: Annotated[int, Range(0, INT32)] = 0
    remat: Literal['', Remat] = ''
    fsdp: Annotated[int, Range(1, 2**20, also=(-1, 0))] = 0
    sequence: Annotated[int, Range(1, 2**20, also=(-1, 0))] = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: the groups of every system. Each system declares its own `model`, `masking` and `sampler`."""

    system: str = ''
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
    stages: Annotated[tuple[StageConfig, ...], Range(0, 100)] = ()  # curriculum; () = one run with this config

    # Systems that read text declare this as a field.
    @property
    def text(self) -> TextConfig:
        """The text that conditions a video: none."""
        return TextConfig()

    @property
    def is_guided(self) -> bool:
        """True if samples are moved away from predictions with less context (classifier-free guidance)."""
        return self.sampler.guidance != 1

    def check_model(self) -> None:
        """Raise ConfigError if fields of the model do not match the other groups of this system."""

    def check_sampler(self) -> None:
        """Raise ConfigError if sampler fields do not match the other groups of this system."""
