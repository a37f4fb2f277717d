"""Diffusion: noise schedules, the Gaussian process, losses and samplers. Mathematics only; knows no model."""
