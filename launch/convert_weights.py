"""Converts published tokenizer weights into a tokenizer folder that configs name as tokenizer.path.

python -m launch.convert_weights --kind sd_vae --source diffusion_pytorch_model.safetensors --out tokenizers/sd_vae
python -m launch.convert_weights --kind kl16 --source kl16.ckpt --out tokenizers/kl16 --dtype bfloat16

Reads safetensors, and torch's own files without torch. A key that is missing, unknown or of another shape is an error.
"""

import dataclasses
import hashlib
from pathlib import Path

from absl import flags

from magi_jax.config import ConfigError
from magi_jax.tokenizers.convert.published_file import convert_file
from magi_jax.tokenizers.folder import NOT_MEASURED, save_tokenizer
from magi_jax.tokenizers.published import PUBLISHED

from . import console

KIND = flags.DEFINE_enum('kind', None, sorted(PUBLISHED), 'which architecture')
SOURCE = console.define_path('source', None, 'the file as published: .safetensors, or .pt, .ckpt, .jit of torch')
OUT = console.define_path('out', None, 'the new tokenizer folder')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'in which the tokenizer will compute')

EXAMPLES = 3  # dropped names shown


def main() -> None:
    """Writes the folder and prints what became of the file's keys."""
    published, out = PUBLISHED[KIND.value], Path(OUT.value)
    if out.exists():
        raise ConfigError(f'{out} exists already: name another --out, or remove it')
    tokenizer, report = convert_file(dataclasses.replace(published.config, dtype=DTYPE.value), SOURCE.value)
    statistics = f'{published.scale}, the scale of its authors' if published.scale else NOT_MEASURED
    with open(SOURCE.value, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    provenance = {
        'statistics': statistics,
        'source': Path(SOURCE.value).name,
        'source_sha256': digest,
        'layout': report.layout,
        'published_as': published.source,
        'licence': published.licence,
    }
    save_tokenizer(tokenizer, out, provenance)
    print(f'{SOURCE.value}: {report.layout} layout, {report.used} keys used, {report.parameters:,} parameters')
    for reason, names in report.dropped.items():
        more = ', ...' * (len(names) > EXAMPLES)
        print(f'  {len(names)} dropped, {reason}: {", ".join(names[:EXAMPLES])}{more}')
    print(f'  latent scale: {statistics}\nwritten to {out}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['kind', 'source', 'out'])
    console.run(main)
