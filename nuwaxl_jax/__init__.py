"""NUWA-XL (arXiv:2303.12346), Diffusion over Diffusion for extremely long video, in JAX and Flax."""

__version__ = "0.1.0"
