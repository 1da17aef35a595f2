"""The videos that a user requests from a generator: arguments as they were given, and checked.

Dimension key: B clips, c context frames, H W pixels.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from magi_jax.config import Config, ConfigError
from magi_jax.sampling.arguments import check_numbers, check_seed, check_videos, check_whole


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """The arguments of `Generator.sample` and `Generator.stream`, where they are documented."""

    context: np.ndarray | None
    frames: int
    num: int
    interval: int
    seed: int
    numbers: Sequence[int] | None
    prompt: str | Sequence[str] | None

    def checked(self, config: Config) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        """Check all arguments.

        Args:
          config: config of the run.

        Returns:
          Context [B, c, H, W, 3], numbers [B] of the videos, and their prompts [B] or None.

        Raises:
          ConfigError: an argument is not allowed, or two of them do not fit each other.
        """
        check_whole('frames', self.frames, 1)
        check_whole('num', self.num, 1)
        check_whole('interval', self.interval, 1, config.data.max_interval, 'data.max_interval of this run')
        check_seed(self.seed)
        size = config.data.height, config.data.width
        numbers = None if self.numbers is None else check_numbers(self.numbers)
        prompts = self._prompts(config)
        if self.context is None:
            given = [len(values) for values in (numbers, prompts) if values is not None and len(values) > 1]
            count = given[0] if given else (self.num if numbers is None else len(numbers))
            context = np.zeros((count, 0, *size, 3), np.uint8)
        else:
            context = check_videos('context', self.context, *size)
        count = len(context)
        if numbers is not None and len(numbers) != count:
            raise ConfigError(f'{len(numbers)} numbers do not fit {count} clips of context: give one for each clip')
        if self.num not in (1, count):
            advice = 'leave num out, or repeat the context with np.repeat(context, num, axis=0)'
            raise ConfigError(f'num = {self.num} does not fit {count} clips of context, numbers or prompts: {advice}')
        if prompts is not None and len(prompts) not in (1, count):
            raise ConfigError(f'{len(prompts)} prompts do not fit {count} videos: give one prompt, or one for each')
        if prompts is not None:
            prompts = prompts * (count // len(prompts))
        return context, np.arange(count) if numbers is None else numbers, prompts

    def _prompts(self, config: Config) -> list[str] | None:
        if self.prompt is None:
            return None
        if not config.text.encoder:
            raise ConfigError(f'prompt = {_shorten(self.prompt)}: this run was trained without text, leave prompt out')
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        prompts = list(prompts) if isinstance(prompts, Iterable) else []
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f'prompt = {_shorten(self.prompt)} is not a text: give a string, or a list of strings')
        return prompts


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'
