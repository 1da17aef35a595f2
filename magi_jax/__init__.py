"""MAGI in JAX: masked autoregressive video generation with complete teacher forcing (arXiv 2501.12389)."""

from magi_jax.generator import Generator, load
from magi_jax.video_output import save_video, show_video

__all__ = ['Generator', 'load', 'save_video', 'show_video']
