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
    """Return what `run['measures']` names, by its name."""
    write_run(folder, run)
    generator = magi_jax.load(folder)
    return {name: MEASURES[name](generator) for name in run['measures']}


def restored_loss(generator):
    """Return the validation loss of the restored weights."""
    objective, mesh, batch = _problem(generator)
    step = jax.jit(make_eval_step(objective, generator.config, mesh))
    return float(step(generator.params, generator.tokenizer, batch)['loss'])


def training_losses(generator):
    """Return the losses of training steps that begin at the restored weights."""
    (objective, mesh, batch), config = _problem(generator), generator.config
    optimizer, params = make_optimizer(config.optim, config.train.steps), jax.device_put(generator.params)
    step, losses = jax.jit(make_train_step(objective, optimizer, config, mesh)), []
    state = TrainState(np.int32(0), params, optimizer.init(params), params)
    for _ in range(STEPS):
        state, metrics = step(state, generator.tokenizer, batch)
        losses.append(float(metrics['loss']))
    return losses


def sampled_video(generator):
    """Return uint8 videos of more frames than the model was trained on, as lists."""
    return generator.sample(frames=FRAMES, num=VIDEOS, seed=1, interval=2, progress=False).tolist()


MEASURES = {'loss': restored_loss, 'losses': training_losses, 'video': sampled_video}


def _problem(generator):
    data, rng = generator.config.data, np.random.default_rng(0)
    video = rng.integers(0, 256, (CLIPS, data.frames, data.height, data.width, 3), dtype=np.uint8)
    batch = {'video': video, 'interval': np.arange(CLIPS, dtype=np.int32) % 2 + 1, 'example': np.arange(CLIPS)}
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return make_objective(generator.config, generator.tokenizer), mesh, batch
