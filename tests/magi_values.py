"""What a small MAGI computes from a run folder that another version of this package could have written.

Only functions are used that older versions have as well, so that `make_magi.py` runs on these.
"""

import json
import zlib

import jax
import numpy as np

import magi_jax
from magi_jax.checkpoint import Checkpoints
from magi_jax.config import MeshConfig
from magi_jax.objectives.api import make_objective
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.optim import make_optimizer
from magi_jax.training.state import TrainState
from magi_jax.training.step import make_eval_step, make_train_step

STEPS, CLIPS, VIDEOS, FRAMES = 5, 4, 2, 5


def write_run(folder, run):
    """Write the config and a checkpoint of parameters that only their paths and shapes determine."""
    params = {}
    for path, shape in run['parameters'].items():
        *groups, name = path.split('/')
        group = params
        for key in groups:
            group = group.setdefault(key, {})
        noise = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape) * 0.2
        group[name] = np.float32(noise + (name == 'scale'))
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(run['config']))
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(3, {'ema': params})
        checkpoints.wait()


def measure(folder, run):
    """Return the loss of the restored weights, the losses of the training steps that follow, and samples."""
    write_run(folder, run)
    generator = magi_jax.load(folder)
    config, tokenizer = generator.config, generator.tokenizer
    objective, mesh = make_objective(config, tokenizer), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    batch, params = _batch(config.data), jax.device_put(generator.params)
    loss = jax.jit(make_eval_step(objective, config, mesh))(params, tokenizer, batch)['loss']
    optimizer, losses = make_optimizer(config.optim, config.train.steps), []
    step = jax.jit(make_train_step(objective, optimizer, config, mesh))
    state = TrainState(np.int32(0), params, optimizer.init(params), params)
    for _ in range(STEPS):
        state, metrics = step(state, tokenizer, batch)
        losses.append(float(metrics['loss']))
    video = generator.sample(frames=FRAMES, num=VIDEOS, seed=1, interval=2, progress=False)
    return {'loss': float(loss), 'losses': losses, 'video': video.tolist()}


def _batch(data):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (CLIPS, data.frames, data.height, data.width, 3), dtype=np.uint8)
    return {'video': video, 'interval': np.arange(CLIPS, dtype=np.int32) % 2 + 1, 'example': np.arange(CLIPS)}
