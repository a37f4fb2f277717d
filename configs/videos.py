"""Your own videos, with the model that toons are trained with.

    python -m nuwaxl_jax.main --mode=train --config=configs/videos.py:short --workdir=DIR --config.data.path=PLACE

preset  frames of a generated video
short   50: two levels of 8 frames (clips of a few seconds suffice)
long    3376: three levels of 16, as the toons' (level 0 is drawn from videos of 3376 frames and more)
study   the same, at the sizes and for the steps of the studies' arms (experiments/study.py)
"""

import ml_collections

from nuwaxl_jax import config as config_lib


def _short(config: ml_collections.ConfigDict) -> None:
    config.data.level_weights = (1.0, 1.0)
    config.hierarchy.update(segment_length=8, depth=2)
    for stage in ("vae", "image_denoiser", "denoiser"):
        config.train[stage].clip_length = 8
    config.sampler.update(steps=(32, 32), guidance=(2.0, 1.5), temperature=(1.0, 1.0))
    config.unet.condition_fill = ("zero", "zero")
    config.diffusion.line_std = (1.0, 1.0)


def _long(config: ml_collections.ConfigDict) -> None:
    """Three levels, as `default()` has them."""


_PRESETS = {"short": _short, "long": _long, "study": config_lib.study}


def get_config(preset: str = "short") -> ml_collections.ConfigDict:
    """`default()` with the preset's overrides."""
    if preset not in _PRESETS:
        raise config_lib.ConfigError(f"configs/videos.py has no preset {preset!r}; choose one of {', '.join(_PRESETS)}")
    config = config_lib.default()
    config.name = f"videos-{preset}"
    config.data.update(source="folder", caption_fill="nearest")
    _PRESETS[preset](config)
    return config
