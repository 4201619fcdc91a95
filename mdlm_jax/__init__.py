"""Diffusion language models in JAX: train, sample and measure them. Importing this costs next to nothing."""

__version__ = "0.1.0"
