"""MAGI on UCF-101 at 256 x 256: the paper's model and recipe (arXiv 2501.12389 §5.1, §A.3), for TPU slices.

    python -m launch.prepare_data --dataset ucf101/split1 --source UCF-101 --height 256 --width 256
    python -m launch.convert_weights --kind sd_vae --source diffusion_pytorch_model.safetensors --out tokenizers/sd_vae
    python -m launch.encode_latents --config configs/magi_ucf101.py --dataset ucf101_sd_vae
    python -m launch.compile --config configs/magi_ucf101.py --topology v5e:4x4
    python -m launch.train --config configs/magi_ucf101.py --config.data.source=ucf101_sd_vae --workdir runs/ucf101/magi

The model has 20 blocks of width 1280. It trains on clips of 16 frames, with batch 128 and learning rate 1e-4, for 1400
epochs of all 13,320 videos of both splits (A19: the paper says over 13,000). Its data are latents of Stable Diffusion
1.4 (f8, 4 channels). Without the third command the tokenizer runs in every step. `launch.compile` needs no TPU and
shows whether a slice is large enough.

Variants:

    cosmos       use latents of Cosmos CV4x8x8: 17 frames become 5 latent frames with 16 channels. Measure their scale
                 first: `python -m launch.measure_statistics --config configs/magi_ucf101.py:cosmos`.
    own          use our own frame-wise autoencoder, with the shape of Stable Diffusion's, for users without the
                 published weights.
    autoencoder  train that autoencoder.
    heads128     use 10 heads of 128 values instead of 16 heads of 80.
    v6e, v5p     set up for 16 chips of v6e or v5p; the default is 16 chips of v5e.
    v5e256       set up for a slice v5e:16x16.
    runlocal     a few steps on a CPU.

The paper reports unconditional FVD for 2,048 videos at 256 x 256 (table 3): 420.6, and 297.8 with Cosmos latents.
Training takes 7.7e20 model FLOPs, and 2.4e20 with `cosmos`. At an assumed 40 % of the peak rate this is 170 or 53 hours
on v5e:4x4, and 68 or 21 hours on 8 H200. It was not trained yet.
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default

# Slice -> (train.remat, clips per chip and micro-batch). Of the settings that fit, these recompute least, according to
# `launch.compile` with `:own`.
SLICES = {'v5e': ('dots', 1), 'v6e': ('dots', 2), 'v5p': ('dots', 4), 'v5e256': ('dots', 1)}
VARIANTS = ('cosmos', 'own', 'autoencoder', 'heads128', *list(SLICES)[1:])  # the first slice is the default


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default()
    config.data.source = 'ucf101/split1'
    config.data.train_split, config.data.eval_split = 'train+test', 'test'
    config.data.height = config.data.width = 256
    config.data.threads = 16
    config.tokenizer.kind = 'sd_vae'
    config.tokenizer.path = 'tokenizers/sd_vae'
    config.tokenizer.width = 128
    config.optim.learning_rate = 1e-4
    config.train.steps = 145_688
    fit_slice(config, next((name for name in names if name in SLICES), 'v5e'))
    if 'heads128' in names:
        config.model.heads = 10
    if 'cosmos' in names:
        config.data.frames = 17
        config.tokenizer.kind = 'cosmos_cv4x8x8'
        config.tokenizer.path = 'tokenizers/cosmos_cv4x8x8'
        config.tokenizer.channels = 16
    if 'own' in names or 'autoencoder' in names:
        config.tokenizer.path = 'runs/ucf101/autoencoder/tokenizer'
        use_own_tokenizer(config)
    if 'autoencoder' in names:
        train_autoencoder(config)
    if 'runlocal' in names:
        run_locally(config)
    return config


def fit_slice(config: ConfigDict, name: str) -> None:
    chips = 256 if name == 'v5e256' else 16
    config.train.remat, clips_at_once = SLICES[name]
    config.optim.accumulate = max(1, config.data.batch_size // (chips * clips_at_once))
    # fsdp uses one axis of the torus. A wider fsdp turns the reduce-scatter of gradients into all-reduces.
    config.mesh.data, config.mesh.fsdp = -1, 4
    config.mesh.sequence = max(1, chips // config.data.batch_size)


def use_own_tokenizer(config: ConfigDict) -> None:
    config.data.frames, config.data.context_frames = 16, 0
    config.tokenizer.kind = 'autoencoder_kl'
    config.tokenizer.width = 128
    config.tokenizer.encoder_blocks = 2
    config.tokenizer.decoder_blocks = 4


def train_autoencoder(config: ConfigDict) -> None:
    config.objective = 'autoencoder'
    config.tokenizer.path = ''
    config.data.frames = config.data.max_interval = 1
    config.autoencoder_loss.crop = 128
    config.optim.learning_rate = 4e-4
    config.optim.warmup_steps = 1000
    config.optim.schedule = 'cosine'
    config.optim.ema_decay = 0.999
    config.train.steps = 100_000
    config.train.remat, config.optim.accumulate, config.mesh.sequence = 'none', 2, 1


def run_locally(config: ConfigDict) -> None:
    config.data.source, config.data.path, config.data.threads = 'bouncing_objects/shapes', '', 2
    config.data.train_split, config.data.eval_split, config.data.context_frames = 'train', 'validation', 0
    config.data.height = config.data.width = 64
    config.data.frames, config.data.max_interval, config.data.batch_size = min(config.data.frames, 4), 2, 8
    config.tokenizer.width = 16
    if config.objective == 'autoencoder':
        config.data.max_interval, config.autoencoder_loss.crop = 1, 16
    else:
        config.tokenizer.kind, config.tokenizer.path = 'identity', ''
        config.tokenizer.channels = 3 * config.tokenizer.downsample**2
    heads = config.model.heads // 2
    config.model.width, config.model.heads, config.model.blocks, config.model.mlp_width = 4 * heads, heads, 2, 32
    config.model.head.width = 16
    config.sampler.keep_frames, config.sampler.mask_steps, config.sampler.denoise_steps = 2, 2, 4
    config.train.steps = 4
    config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
    config.optim.accumulate = 2
    config.mesh.data, config.mesh.fsdp, config.mesh.sequence = -1, 1, 1
