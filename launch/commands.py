"""The names of the commands where they run: `launch.train` in a checkout, `magi_jax.launch.train` once installed."""

import re


def as_called_here(text: str) -> str:
    """Return a text that names commands as `launch.NAME`, with the names that work for this installation."""
    return re.sub(r'(?<![\w./])launch\.(?=\w)', f'{__package__}.', text)
