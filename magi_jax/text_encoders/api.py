"""Text encoders: prompts to states, which the blocks of a video model attend to. They are frozen.

launch.encode_text runs an encoder over the captions of a dataset once, and training reads the states. At sampling time
`open_encoder` opens the same encoder for new prompts. A description of the encoder lies beside the stored states and in
every run folder, so that another encoder is refused.

Dimension key: P prompts, S states of a prompt, E width.
"""

import dataclasses
import json
import pathlib
from typing import Any, Protocol

import numpy as np

from magi_jax.config import ConfigError, TextConfig
from magi_jax.text_encoders import huggingface
from magi_jax.text_encoders.words import WordEncoder

DESCRIPTION = 'text_encoder.json'


class TextEncoder(Protocol):
    """A frozen encoder, with the attributes of its `EncoderDescription`."""

    @property
    def name(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def system_prompt(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return states float32 [P,S,E] and the mask bool [P,S] of those that are no padding.

        Raises:
          ConfigError: a prompt has no words.
        """


@dataclasses.dataclass(frozen=True)
class EncoderDescription:
    """The attributes of a `TextEncoder`, as they are stored beside its states.

    Attributes:
      name: 'words', or the name or folder of a Hugging Face model.
      length: S.
      width: E.
      system_prompt: text before every prompt, whose states are dropped.
      dtype: dtype of the computation.
      fingerprint: hex digest. Encoders with equal fingerprints compute the same states.
    """

    name: str
    length: int
    width: int
    system_prompt: str
    dtype: str
    fingerprint: str


def make_encoder(
    name: str,
    length: int,
    width: int | None = None,
    system_prompt: str = '',
    dtype: str = huggingface.DTYPES[0],
    device: str = 'cpu',
) -> TextEncoder:
    """Open an encoder.

    Args:
      name: 'words', or the name or folder of a Hugging Face model.
      length: S.
      width: E. None takes that of the model.
      system_prompt: as in `EncoderDescription`; only for a Hugging Face model.
      dtype: one of `huggingface.DTYPES`; only for a Hugging Face model.
      device: PyTorch device; only for a Hugging Face model.

    Raises:
      ConfigError: the model does not exist or has another width, its packages are missing, or 'words' gets a system
        prompt.
    """
    if name != WordEncoder.name:
        return huggingface.open_model(name, length, width, system_prompt, dtype, device)
    if system_prompt:
        raise ConfigError(f'text encoder {name!r} takes no system prompt: leave it out')
    return WordEncoder(length, TextConfig.width if width is None else width)


def open_encoder(text: TextConfig, folder: str | pathlib.Path | None = None, device: str = 'cpu') -> TextEncoder:
    """Open the encoder of a config, for prompts at sampling time.

    Args:
      text: config with the encoder, its length and width.
      folder: run folder, or folder of stored states, that holds a description. The encoder gets the system prompt and
        dtype of the description, and must have its fingerprint. None: no system prompt, float32, no check.
      device: PyTorch device of a Hugging Face model.

    Raises:
      ConfigError: the errors of `make_encoder`, there is no description, or it is of another encoder.
    """
    if not text.encoder:
        raise ConfigError("text.encoder = '' takes no prompts: train with a text encoder, such as 'words'")
    if folder is None:
        return make_encoder(text.encoder, text.length, text.width, device=device)
    stored = read_description(folder)
    if stored is None:
        raise ConfigError(f'{folder} has no {DESCRIPTION}: give the folder of a run that was trained with text')
    encoder = make_encoder(text.encoder, text.length, text.width, stored.system_prompt, stored.dtype, device)
    require_same_encoder(stored, describe(encoder), f'text of {folder}')
    return encoder


def describe(encoder: TextEncoder) -> EncoderDescription:
    """Return the description of an encoder."""
    names = [field.name for field in dataclasses.fields(EncoderDescription)]
    return EncoderDescription(**{name: getattr(encoder, name) for name in names})


def parse_description(values: dict[str, Any]) -> EncoderDescription:
    """Return the description that `dataclasses.asdict` turned into a dict."""
    return EncoderDescription(**values)


def read_description(folder: str | pathlib.Path) -> EncoderDescription | None:
    """Read the description of the encoder from a folder. Return None if there is none."""
    path = pathlib.Path(folder) / DESCRIPTION
    return parse_description(json.loads(path.read_text())) if path.is_file() else None


def keep_description(folder: str | pathlib.Path, description: EncoderDescription) -> None:
    """Write the description of the encoder to a run folder, at the start of the run.

    Raises:
      ConfigError: the folder holds the description of another encoder.
    """
    stored = read_description(folder)
    if stored is not None:
        require_same_encoder(stored, description, f'text of {folder}')
        return
    path = pathlib.Path(folder) / DESCRIPTION
    draft = path.with_name(f'.{path.name}.partial')
    draft.write_text(json.dumps(dataclasses.asdict(description), indent=1) + '\n')
    draft.replace(path)


def require_same_encoder(stored: EncoderDescription, found: EncoderDescription, what: str) -> None:
    """Raise ConfigError if two encoders differ; `what` names the owner of `stored`. Paths of a model may differ."""
    for field in dataclasses.fields(EncoderDescription):
        old, new = getattr(stored, field.name), getattr(found, field.name)
        if field.name == 'name':
            old, new = short_name(old), short_name(new)
        if old != new:
            raise ConfigError(
                f'{what} is by an encoder with {field.name} = {old!r}, not {new!r}: set config.text to that encoder, '
                'or run launch.encode_text again with --replace'
            )


def short_name(encoder: str) -> str:
    """Return the last part of an encoder's name or path. It names the folder of the stored states."""
    return pathlib.PurePath(encoder).name or 'unnamed'
