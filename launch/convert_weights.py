"""Converts published tokenizer weights into a tokenizer folder that configs name as tokenizer.path.

python -m launch.convert_weights --kind sd_vae --source diffusion_pytorch_model.safetensors --out tokenizers/sd_vae
python -m launch.convert_weights --kind kl16 --source kl16.ckpt --out tokenizers/kl16 --dtype bfloat16

It reads safetensors files, and PyTorch files without PyTorch. A key that is missing, unknown or of another shape is an
error.
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

KIND = flags.DEFINE_enum('kind', None, sorted(PUBLISHED), 'architecture of the weights')
SOURCE = console.define_path('source', None, 'published weight file: .safetensors, or .pt, .ckpt or .jit of PyTorch')
OUT = console.define_path('out', None, 'new tokenizer folder')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'dtype in which the tokenizer computes')

PRINTED_KEYS = 3  # number of dropped keys that are printed


def main() -> None:
    """Write the tokenizer folder, and print how many keys of the file were used and dropped."""
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
        more = ', ...' * (len(names) > PRINTED_KEYS)
        print(f'  {len(names)} dropped, {reason}: {", ".join(names[:PRINTED_KEYS])}{more}')
    print(f'  latent scale: {statistics}\nwritten to {out}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['kind', 'source', 'out'])
    console.run(main)
