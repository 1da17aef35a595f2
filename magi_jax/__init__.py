"""MAGI in JAX: masked autoregressive video generation with complete teacher forcing (arXiv 2501.12389)."""

from magi_jax.generator import Generator, load

__all__ = ['Generator', 'load']
