"""Writes a trained generator as weights to share: safetensors, config, tokenizer and a model card.

python -m launch.export --workdir runs/quickstart/magi --metrics runs/quickstart/metrics.json --out weights/quickstart
python -m launch.export --workdir runs/quickstart/magi --license apache-2.0 --push user/name --out weights/quickstart

`magi_jax.load` and `launch.sample --workdir` read this folder on any machine. They also read an uploaded repository by
its name.
"""

from absl import flags

import magi_jax
from magi_jax.pretrained.hub import push_folder

from . import console

WORKDIR = console.define_path('workdir', None, 'folder of a trained generator')
OUT = console.define_path('out', None, 'folder for the weights')
METRICS = console.define_path(
    'metrics',
    None,
    'metrics.json of launch.evaluate, for the model card; default: metrics.json in --workdir, if it exists',
)
LICENSE = flags.DEFINE_string(
    'license', 'unknown', 'licence of the weights, as a Hugging Face Hub identifier such as apache-2.0'
)
PUSH = flags.DEFINE_string('push', None, "Hugging Face Hub repository to upload to, as 'user/name'")
PRIVATE = flags.DEFINE_bool('private', False, 'make a new repository of --push private')


def main() -> None:
    """Write the folder, upload it with --push, and print both locations."""
    generator = magi_jax.load(WORKDIR.value)
    generator.save_pretrained(OUT.value, name=PUSH.value, license=LICENSE.value, metrics=METRICS.value)
    print(f'step {generator.step} of {WORKDIR.value} written to {OUT.value}')
    if PUSH.value:
        print(f'uploaded to {push_folder(OUT.value, PUSH.value, PRIVATE.value)}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir', 'out'])
    console.run(main)
