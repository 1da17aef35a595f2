"""Qualifies command names: `launch.train` in a checkout, `magi_jax.launch.train` in an installed package."""

import re


def qualify_commands(text: str) -> str:
    """Return `text` with each `launch.NAME` replaced by the module name that this installation uses."""
    return re.sub(r'(?<![\w./])launch\.(?=\w)', f'{__package__}.', text)
