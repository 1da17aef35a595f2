"""VideoMAR at 480 x 768: the paper's model and curriculum (arXiv 2506.14168), for TPU slices.

python -m launch.prepare_data --dataset my_videos --source FOLDER
python -m launch.encode_text --dataset my_videos --captions captions.jsonl --encoder mit-han-lab/Qwen2-VL-1.5B-Instruct
python -m launch.convert_weights --kind cosmos_cv8x16x16 --source autoencoder.jit --out tokenizers/cosmos_cv8x16x16
python -m launch.measure_statistics --config configs/videomar_i2v.py
python -m launch.compile --config configs/videomar_i2v.py --topology v5p:2x2x4
python -m launch.train --config configs/videomar_i2v.py --workdir runs/videomar/i2v
"""

from ml_collections import ConfigDict

from magi_jax.config import ConfigError, default

STAGES = (
    {'steps': 50_000, 'frames': 9, 'height': 256, 'width': 256, 'batch_size': 256},
    {'steps': 50_000, 'frames': 17, 'height': 256, 'width': 256, 'batch_size': 256},
    {'steps': 50_000, 'frames': 25, 'height': 256, 'width': 256, 'batch_size': 256},
    {'steps': 25_000, 'frames': 25, 'height': 480, 'width': 768, 'batch_size': 256},
)
SLICES = {
    'v5p': (('dots', 4), ('dots', 1)),
    'v6e': (('dots', 4), ('dots', 1)),
    'v5e': (('dots', 1), ('named', 1)),
}
CHIPS = 16
VARIANTS = (*(f'stage{number + 1}' for number in range(len(STAGES))), *list(SLICES)[1:])


def get_config(arg: str = '') -> ConfigDict:
    names = [name for name in arg.split(',') if name]
    if unknown := set(names) - {*VARIANTS, 'runlocal'}:
        raise ConfigError(f'no variant {sorted(unknown)}; there are: {", ".join(VARIANTS)}, runlocal')
    config = default('videomar')
    config.data.source = 'my_videos'
    config.data.max_interval = 1
    config.data.flip_horizontal = False
    config.data.threads = 16
    config.text.encoder = 'mit-han-lab/Qwen2-VL-1.5B-Instruct'
    config.tokenizer.kind = 'cosmos_cv8x16x16'
    config.tokenizer.path = 'tokenizers/cosmos_cv8x16x16'
    config.tokenizer.channels, config.tokenizer.downsample, config.tokenizer.width = 16, 16, 128
    config.tokenizer.dtype = 'bfloat16'
    config.optim.learning_rate = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.ema_decay = 0.999
    small, large = SLICES[next((name for name in names if name in SLICES), 'v5p')]
    stage = STAGES[next((int(name[-1]) for name in names if name.startswith('stage')), len(STAGES)) - 1]
    config.train.steps = stage['steps']
    for name in ('frames', 'height', 'width', 'batch_size'):
        config.data[name] = stage[name]
    config.train.remat, clips_at_once = large if stage['height'] > 256 else small
    config.optim.accumulate = stage['batch_size'] // (CHIPS * clips_at_once)
    config.mesh.data, config.mesh.fsdp = -1, 4
    return config
