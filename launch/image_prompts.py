"""The images and prompts of `launch.sample_prompts`: read from a file, or from the names of images."""

import json
from pathlib import Path
from typing import Any

from magi_jax.config import ConfigError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
KEYS = (('image_name', 'prompt_en'), ('image', 'prompt'))  # names of the two fields of an entry
MAX_BYTES = 230  # of a prompt; names of files have at most 255, and a video has a longer name while it is written


def read_pairs(folder: Path, prompts: str) -> list[tuple[Path, str]]:
    """Return images with their prompts, each pair once.

    Args:
      folder: folder of the images.
      prompts: JSON list or JSON lines of images and prompts; '' = the names of the images are the prompts.

    Raises:
      ConfigError: there are no images, an image is missing, an entry has no prompt or one that cannot name a file, or
        two images have the same prompt, so that their videos would have the same names.
    """
    if prompts:
        pairs = [_pair(folder, entry, f'entry {n} of {prompts}') for n, entry in enumerate(read_entries(prompts), 1)]
    else:
        images = [path for path in sorted(folder.glob('*')) if path.suffix.lower() in SUFFIXES]
        if not images:
            raise ConfigError(f'{folder} holds no images: give a folder with {", ".join(SUFFIXES)} files')
        pairs = [(path, _checked(path.stem, str(path))) for path in images]
    images_of: dict[str, Path] = {}
    for image, prompt in pairs:
        if images_of.setdefault(prompt, image) != image:
            both = f'{images_of[prompt].name} and {image.name}'
            raise ConfigError(f'{both} have the same prompt {prompt!r}, which names their videos: change one of them')
    return list(dict.fromkeys(pairs))


def read_entries(path: str) -> list[dict[str, Any]]:
    """Read a JSON list, or JSON lines. Raise ConfigError if the file is missing, empty or neither of them."""
    if not Path(path).is_file():
        raise ConfigError(f'there is no file {path}: give the JSON file of images and prompts')
    try:
        text = Path(path).read_text(encoding='utf-8')
        lines = [line for line in text.splitlines() if line.strip()]
        entries = json.loads(text) if text.lstrip().startswith('[') else [*map(json.loads, lines)]
    except ValueError as error:
        raise ConfigError(f'{path} is not JSON ({error}): give a list or lines of image and prompt') from error
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path} is no list of objects: give objects with the keys image and prompt')
    return entries


def _pair(folder: Path, entry: dict[str, Any], what: str) -> tuple[Path, str]:
    keys = next((keys for keys in KEYS if all(isinstance(entry.get(key), str) for key in keys)), None)
    if keys is None:
        raise ConfigError(f'{what} has no image and prompt: give the keys image and prompt')
    image = folder / entry[keys[0]]
    if not image.is_file():
        raise ConfigError(f'{what}: there is no image {image}: correct --images or the entry')
    return image, _checked(entry[keys[1]], what)


def _checked(prompt: str, what: str) -> str:
    """Return a prompt that can name a file."""
    if not prompt.strip():
        raise ConfigError(f'{what}: the prompt is empty: describe the video')
    if len(prompt.encode()) > MAX_BYTES or '/' in prompt or '\0' in prompt:
        raise ConfigError(f'{what}: the prompt is no file name: give at most {MAX_BYTES} bytes without /')
    return prompt
