"""TFDS's data set `flintstones_hd`, registered by importing this package."""

from nuwaxl_jax.data.flintstones_hd import flintstones_hd_dataset_builder

Builder = flintstones_hd_dataset_builder.Builder
