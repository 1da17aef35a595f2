"""Maps the weights of a published file to the parameters of a module, and accounts for every key.

The parameters of the module define what the file must hold. The path `encoder/down_blocks_0/conv1/kernel` [3, 3, I, O]
is the tensor `encoder.down_blocks.0.conv1.weight` [O, I, 3, 3] in the canonical layout. Every other layout is a
function from canonical names to its own. So errors name a missing tensor as the file would.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from magi_jax.config import ConfigError
from magi_jax.tokenizers.convert.checkpoint_files import Weight

SHOWN = 4  # names of each kind that an error lists
# Axis order from torch weights to Flax kernels, by rank. A linear map may be stored as a 1x1 convolution.
KERNELS = {2: 'O I -> I O', 4: 'O I H W -> H W I O', 5: 'O I T H W -> T H W I O'}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One naming scheme of weights.

    Attributes:
      name: name in reports.
      rename: function from the canonical name to the name in the file.
      dropped: (pattern, reason) of keys in the file that are left out on purpose.
      channels_last: True for TensorFlow files: kernels as in Flax, vectors with leading axes of length 1.
    """

    name: str
    rename: Callable[[str], str]
    dropped: tuple[tuple[str, str], ...] = ()
    channels_last: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the keys: `used` of them hold `parameters` values, `dropped` maps a reason to names."""

    layout: str
    used: int
    parameters: int
    dropped: dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A parameter of the module and the shapes that a file may store it in."""

    path: str
    shape: tuple[int, ...]
    channels_last: bool = False

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape that the file should hold."""
        if self.channels_last or not self.path.endswith('/kernel'):
            return self.shape
        *window, inputs, outputs = self.shape
        return (outputs, inputs, *window)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a tensor of `shape` holds this parameter, up to axes of length 1.

        Such axes come from torch (linear maps stored as 1x1 convolutions) and from TensorFlow (leading axes of
        vectors).
        """
        if self.channels_last and len(self.shape) == 1:
            return shape[-1:] == self.shape and set(shape[:-1]) <= {1}
        if self.path.endswith('/kernel') and len(self.shape) == 2 and len(shape) in (4, 5):
            return shape[:2] == self.file_shape and set(shape[2:]) == {1}
        return shape == self.file_shape

    def from_file(self, values: np.ndarray) -> np.ndarray:
        """Convert the tensor to the form of the module, in float32."""
        values = np.asarray(values, np.float32)
        if self.channels_last or not self.path.endswith('/kernel'):
            return values.reshape(self.shape)
        if len(self.shape) == 2:
            values = values.reshape(self.file_shape)
        return np.ascontiguousarray(rearrange(values, KERNELS[len(self.shape)]))


def slots(params: dict) -> dict[str, Slot]:
    """Return {canonical name: slot} of the parameters of a module (arrays or shapes)."""
    flat = flatten_dict(params, sep='/')
    return {_canonical(path): Slot(path, tuple(leaf.shape)) for path, leaf in flat.items()}


def convert(weights: dict[str, Weight], params: dict, layouts: Iterable[Layout], source: str) -> tuple[dict, Report]:
    """Convert the weights of a file to parameters shaped as `params`, in the layout that matches most keys.

    Args:
      weights: result of `open_weights`.
      params: parameters of the module, or their shapes from `jax.eval_shape`.
      layouts: layouts that the file may have.
      source: file name for error messages.

    Returns:
      The float32 parameters and the report.

    Raises:
      ConfigError: a key is missing, unexpected, of the wrong shape, or not finite; one line names all such keys.
    """
    wanted = slots(params)
    layout = max(layouts, key=lambda layout: sum(layout.rename(name) in weights for name in wanted))
    by_key = {
        layout.rename(name): dataclasses.replace(slot, channels_last=layout.channels_last)
        for name, slot in wanted.items()
    }
    dropped, unexpected = _partition_keys([key for key in weights if key not in by_key], layout.dropped)
    found = {key: slot for key, slot in by_key.items() if key in weights}
    problems = {
        'missing': [key for key in by_key if key not in weights],
        'unexpected': unexpected,
        'of another shape': [
            _shape_mismatch(key, weights[key].shape, slot)
            for key, slot in found.items()
            if not slot.fits(weights[key].shape)
        ],
    }
    _raise_mismatch(source, layout, problems)
    made = {slot.path: slot.from_file(weights[key].read()) for key, slot in found.items()}
    broken = [key for key, slot in found.items() if not np.isfinite(made[slot.path]).all()]
    _raise_mismatch(source, layout, {'not finite': broken})
    parameters = sum(math.prod(slot.shape) for slot in found.values())
    return unflatten_dict(made, sep='/'), Report(layout.name, len(found), parameters, dropped)


def substitute(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply each (pattern, replacement) to `name` in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _canonical(path: str) -> str:
    name = re.sub(r'_(\d+)(?=[_/])', r'.\1', path).replace('/', '.')
    return re.sub(r'\.(kernel|scale)$', '.weight', name)


def _partition_keys(
    keys: list[str], patterns: Iterable[tuple[str, str]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Split keys into dropped ones, by reason, and unexpected ones."""
    reasons = {key: next((reason for pattern, reason in patterns if re.match(pattern, key)), None) for key in keys}
    found = dict.fromkeys(reason for reason in reasons.values() if reason)
    dropped = {reason: tuple(key for key in keys if reasons[key] == reason) for reason in found}
    return dropped, [key for key in keys if reasons[key] is None]


def _shape_mismatch(key: str, shape: tuple[int, ...], slot: Slot) -> str:
    turned = sorted(n for n in shape if n > 1) == sorted(n for n in slot.file_shape if n > 1)
    return f'{key} {shape} instead of {slot.file_shape}{" (transposed?)" * turned}'


def _raise_mismatch(source: str, layout: Layout, problems: dict[str, list[str]]) -> None:
    lines = []
    for problem, names in problems.items():
        if names:
            more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
            lines.append(f'{problem}: {", ".join(names[:SHOWN])}{more}')
    if lines:
        raise ConfigError(f'{source} does not fit the {layout.name} layout; {"; ".join(lines)}')
