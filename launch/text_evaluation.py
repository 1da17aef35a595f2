"""The work of `launch.evaluate --protocol captions_text`: sample from captions, detect what is shown, write a table."""

import numpy as np

import magi_jax
from magi_jax.config import ConfigError
from magi_jax.data.pipeline import eval_batches
from magi_jax.evaluation import report
from magi_jax.evaluation.protocols import CaptionedVideos
from magi_jax.evaluation.text_steering import score_steering, table_rows

from . import console
from .evaluations import Call, call_facts, frame_progress, per_device_batch
from .stages import Stages

SOURCE = 'bouncing_objects/captions'


def measure_text_steering(call: Call, protocol: CaptionedVideos) -> None:
    """Measure how often videos show the colour, shape and direction that their captions name."""
    generator = magi_jax.load(call.workdir)
    if generator.config.data.source != SOURCE or not generator.config.text.encoder:
        raise ConfigError(
            f'protocol {call.protocol} needs a run on {SOURCE} with text: train configs/quickstart_videomar.py'
        )
    (batch,) = eval_batches(generator.config.data, 'test', protocol.frames, protocol.clips, protocol.clips)
    kinds = [f'sampling seed {seed}, {kind} captions' for seed in range(protocol.seeds) for kind in ('own', 'swapped')]
    with Stages(kinds) as stages:

        def generate(captions: list[str], seed: int) -> np.ndarray:
            stages.next()
            options = {'seed': seed, 'prompt': captions, 'per_device_batch': per_device_batch()}
            options['numbers'] = np.arange(len(captions))
            return generator.sample(frames=protocol.frames, **options, progress=frame_progress(stages, len(captions)))

        result = score_steering(batch, generate, protocol.seeds, call.seed)
    if console.is_first():
        print(f'\nprotocol {call.protocol}: {result.clips} captions of combinations that training does not show')
        print(report.markdown_table(*table_rows(result)))
        call.write({'protocol': call.protocol, 'text_steering': result.to_json()} | call_facts(call))
