"""Diffusion over diffusion: which segments a video needs, and making them level by level."""
