"""VideoMAR, image to video at 480 x 768: the paper's model and curriculum (arXiv 2506.14168), for TPU slices.

    python -m launch.prepare_data --dataset my_videos --source FOLDER --height 480 --width 768
    python -m launch.encode_text --dataset my_videos --captions texts.csv --encoder mit-han-lab/Qwen2-VL-1.5B-Instruct
    python -m launch.convert_weights --kind cosmos_cv8x16x16 --source autoencoder.jit --out tokenizers/cosmos_cv8x16x16
    python -m launch.measure_statistics --config configs/videomar_i2v.py
    python -m launch.compile --config configs/videomar_i2v.py --topology v5p:2x2x4
    python -m launch.train --config configs/videomar_i2v.py --workdir runs/videomar/i2v
    python -m launch.sample --workdir runs/videomar/i2v --context image.png --prompt "a dog runs" --frames 25 --out new

The model has 36 blocks of width 1536 with 24 heads: 1,382,823,456 parameters. Its text are 300 states of the language
half of Qwen2-VL. Latents are those of Cosmos CV8x16x16: 25 frames become 4 latent frames, of 256 tokens at 256 x 256
and of 1,440 tokens at 480 x 768. `launch.encode_latents --stage N` encodes them once; without it the tokenizer runs in
every step. `launch.compile --stage N` needs no TPU and shows whether a slice is large enough for a stage.

The text of the paper does not state everything, so these settings are not from the paper:

    clip lengths   The paper's are 5, 13 and 25 frames. Its tokenizer takes 1 + 8k frames, so ours are 9, 17 and 25.
    stages         The paper has short clips before long ones, and 256 x 256 before 480 x 768. It does not state how the
                   two are paired, nor steps, batch sizes and learning rates.
    optimizer      AdamW(0.9, 0.95), weight decay 0.02, learning rate 1e-4 for batch 256, clipping at 1, EMA 0.999. They
                   are those of FAR, an image model of the same first author.
    rotation       32, 16 and 16 of the 64 channels of a head rotate with frame, row and column.
    latent scale   Latents have mean 0 and deviation 1 by `launch.measure_statistics`. The authors multiply by 0.5.

Variants:

    v5e, v6e     set up for 16 chips of v5e or v6e; the default is 16 chips of v5p.
    runlocal     a few steps on a CPU.

Stages 3 and 4 on v5p were compiled (launch/tpu/README.md). The settings of v5e and v6e follow by arithmetic.

All stages take 6.1e20 model FLOPs. At an assumed 40 % of the peak rate this is 58 hours on v5p:2x2x4, 134 on v5e:4x4,
29 on v6e:4x4 and 53 on 8 H200. It was not trained yet.
"""

from typing import Any

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default

STAGES = (
    {'steps': 50_000, 'frames': 9, 'height': 256, 'width': 256},
    {'steps': 50_000, 'frames': 17, 'height': 256, 'width': 256},
    {'steps': 50_000, 'frames': 25, 'height': 256, 'width': 256},
    {'steps': 25_000, 'frames': 25, 'height': 480, 'width': 768},
)
BATCH, CHIPS = 256, 16
# Slice -> (train.remat, clips per chip and micro-batch) of the stages at 256 x 256, and of the one at 480 x 768.
SLICES = {
    'v5p': (('dots', 4), ('dots', 4)),
    'v5e': (('dots', 1), ('named', 1)),
    'v6e': (('dots', 4), ('dots', 1)),
}
VARIANTS = tuple(SLICES)[1:]  # the first slice is the default


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default('videomar')
    config.data.source = 'my_videos'
    config.data.batch_size = BATCH
    config.data.max_interval = 1
    config.data.flip_horizontal = False  # captions name directions
    config.data.threads = 16
    config.text.encoder = 'mit-han-lab/Qwen2-VL-1.5B-Instruct'
    config.text.length, config.text.width = 300, 1536
    config.tokenizer.kind = 'cosmos_cv8x16x16'
    config.tokenizer.path = 'tokenizers/cosmos_cv8x16x16'
    config.tokenizer.channels, config.tokenizer.downsample, config.tokenizer.width = 16, 16, 128
    config.tokenizer.dtype = 'bfloat16'
    config.optim.learning_rate = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.ema_decay = 0.999
    config.mesh.data, config.mesh.fsdp = -1, 4
    slice_name = next((name for name in names if name in SLICES), 'v5p')
    use_stages(config, tuple(fit_stage(stage, slice_name) for stage in STAGES))
    if 'runlocal' in names:
        run_locally(config)
    return config


def fit_stage(stage: dict[str, int], slice_name: str) -> dict[str, Any]:
    remat, clips_at_once = SLICES[slice_name][stage['height'] > 256]
    return stage | {'remat': remat, 'accumulate': BATCH // (CHIPS * clips_at_once)}


def use_stages(config: ConfigDict, stages: tuple[dict[str, Any], ...]) -> None:
    """Set the stages, and the fields of the config itself to the last one."""
    config.stages, last = stages, stages[-1]
    config.train.steps = last['steps']
    config.data.frames, config.data.height, config.data.width = last['frames'], last['height'], last['width']
    config.train.remat, config.optim.accumulate = last.get('remat', 'none'), last.get('accumulate', 1)


def run_locally(config: ConfigDict) -> None:
    config.data.source, config.data.batch_size, config.data.threads = 'bouncing_objects/captions', 8, 2
    config.text.encoder, config.text.length, config.text.width = 'words', 16, 64
    config.tokenizer.kind, config.tokenizer.path, config.tokenizer.downsample = 'identity', '', 8
    config.tokenizer.channels, config.tokenizer.width = 3 * config.tokenizer.downsample**2, 16
    config.model.width, config.model.blocks, config.model.mlp_width, config.model.head.width = 32, 2, 32, 16
    config.model.heads, config.model.rope_split = 2, (8, 4, 4)
    config.sampler.mask_steps, config.sampler.denoise_steps = 2, 4
    config.train.eval_every = config.train.sample_every = config.train.checkpoint_every = 2
    config.mesh.data, config.mesh.fsdp = -1, 1
    use_stages(
        config,
        ({'steps': 2, 'frames': 2, 'height': 64, 'width': 64}, {'steps': 2, 'frames': 4, 'height': 48, 'width': 64}),
    )
