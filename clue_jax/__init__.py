"""CLUE pretrained models (Chinese RoBERTa) in JAX and Flax."""

from clue_jax.config import ModelConfig

__all__ = ["ModelConfig"]
__version__ = "0.1.0"
