"""Text encoders of Hugging Face `transformers`: the last hidden states of a decoder or encoder model.

Of a model for images and text, only the language half is used. VideoMAR's encoder is that of Qwen2-VL. A system prompt
is put before every prompt, and its states are dropped.

`transformers` and PyTorch are an optional extra, imported when an encoder is opened.

Dimension key: P prompts, S states of a prompt, E width, L tokens of the longest prompt with the system prompt.
"""

import functools
import hashlib
import json
from typing import Any

import numpy as np

from magi_jax.config import ConfigError
from magi_jax.text_encoders.states import finish

DTYPES = 'float32', 'bfloat16'
# Entries of a model's config that depend on the file or the library, not on the states.
_VOLATILE = 'transformers_version', '_name_or_path', 'architectures', 'dtype', 'torch_dtype', 'use_cache'
_PROBES = ['a red disc moves up and left past a blue square', 'Ünï-cödé 3.14?']


class TransformersEncoder:
    """The states [P,S,E] of a language model, see the module docstring. `open_model` makes it.

    Args:
      name: name or folder of the model.
      length: S. Longer prompts are truncated.
      system_prompt: text before every prompt; '' = none.
      dtype: one of DTYPES.
      model: the language model, a PyTorch module without gradients.
      tokenizer: its tokenizer.
    """

    def __init__(self, name: str, length: int, system_prompt: str, dtype: str, model: Any, tokenizer: Any):
        self.name, self.length, self.system_prompt, self.dtype = name, length, system_prompt, dtype
        self.width = int(model.get_input_embeddings().weight.shape[1])
        self._model, self._tokenizer = model, tokenizer
        system_tokens = len(tokenizer(system_prompt)['input_ids']) if system_prompt else 0
        self._most_tokens = min(length + system_tokens, tokenizer.model_max_length)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over config, weights and vocabulary of the model, and the settings of this encoder."""
        config = {key: value for key, value in self._model.config.to_diff_dict().items() if key not in _VOLATILE}
        tokens = [self._tokenizer.get_vocab(), self._tokenizer(_PROBES)['input_ids']]
        settings = [self.length, self.system_prompt, self.dtype, config, tokens]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(f'{name} {tuple(weight.shape)}'.encode())
            digest.update(np.ascontiguousarray(_to_numpy(weight)).tobytes())
        return digest.hexdigest()

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return states float32 [P,S,E] and the mask bool [P,S] of those that are no padding.

        Raises:
          ConfigError: a prompt has no words.
        """
        states = np.zeros((len(prompts), self.length, self.width), np.float32)
        mask = np.zeros(states.shape[:2], bool)
        texts = [self.system_prompt + prompt for prompt in prompts]
        if not all(text.strip() for text in texts):  # a batch without tokens is an error of some models
            return finish(prompts, states, mask)
        options = {'padding': True, 'truncation': True, 'max_length': self._most_tokens, 'return_tensors': 'pt'}
        tokens = self._tokenizer(texts, return_offsets_mapping=bool(self.system_prompt), **options)
        first = self._first_tokens(tokens)
        tokens = tokens.to(self._model.device)
        output = self._model(input_ids=tokens['input_ids'], attention_mask=tokens['attention_mask'])
        hidden, ends = _to_numpy(output.last_hidden_state), tokens['attention_mask'].sum(1).tolist()
        for row, (start, end) in enumerate(zip(first, ends, strict=True)):
            kept = hidden[row, start:end][: self.length]
            states[row, : len(kept)], mask[row, : len(kept)] = kept, True
        return finish(prompts, states, mask)

    def _first_tokens(self, tokens: Any) -> list[int]:
        """Return the number of tokens before each prompt, from the letters [P,L,2] that each token stands for.

        A token that joins the last letters of the system prompt with those of the prompt belongs to the prompt.
        """
        if not self.system_prompt:
            return [0] * len(tokens['input_ids'])
        letter_ends = tokens.pop('offset_mapping').numpy()[:, :, 1]
        of_prompt = letter_ends > len(self.system_prompt)
        return [int(row.argmax()) if row.any() else row.size for row in of_prompt]


def open_model(
    name: str, length: int, width: int | None, system_prompt: str, dtype: str, device: str
) -> TransformersEncoder:
    """Load a model and its tokenizer. Arguments and errors are those of `api.make_encoder`."""
    try:
        import transformers
    except ImportError:
        transformers = None
    if transformers is None or not transformers.utils.is_torch_available():
        raise ConfigError(f'text encoder {name!r} needs transformers and torch: pip install -e .[text]')
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, padding_side='right')
        whole, info = transformers.AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
        model = _language_model(whole).eval().requires_grad_(False).to(device)
    except (OSError, ValueError, RuntimeError, AssertionError, ImportError) as error:
        reason = ' '.join(str(error).split())[:300]
        raise ConfigError(f'text encoder {name!r} cannot be opened ({reason}): give a Hugging Face model') from error
    own = {id(parameter) for parameter in model.parameters()}
    named = {key for key, parameter in whole.named_parameters() if id(parameter) in own}
    if missing := sorted(named & set(info['missing_keys'])):
        raise ConfigError(f'text encoder {name!r} has no weights {missing[0]}: give a complete model')
    if tokenizer.pad_token is None:  # which token it is does not matter, because padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    encoder = TransformersEncoder(name, length, system_prompt, dtype, model, tokenizer)
    if width not in (None, encoder.width):
        raise ConfigError(f'text width = {width}, but states of {name!r} have width {encoder.width}: set that width')
    return encoder


def _language_model(whole: Any) -> Any:
    """Return the module whose hidden states are the text states, without what only other outputs need."""
    if whole.config.is_encoder_decoder:
        return whole.get_encoder()
    model = next((getattr(whole, half) for half in ('language_model', 'text_model') if hasattr(whole, half)), whole)
    if getattr(model, 'pooler', None) is not None:  # of BERT; its weights are missing in many files
        model.pooler = None
    return model


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
