"""Registered TFDS video data sets, trained on as toons are: the small model, other data.

    python -m nuwaxl_jax.main --mode=train --config=configs/tfds.py:bair_robot_pushing_small --workdir=DIR

Prepare the data once, as ArrayRecord: `tfds.builder(NAME, file_format="array_record").download_and_prepare()`. A set
that keeps its frames in `tfds.features.Video` needs TensorFlow installed to be read too.

preset                    frames, caption
moving_mnist              20 of 64x64, no caption; TFDS has a test split alone, of which parts are train and valid
ucf101                    some hundred of 256x256, the action's name
bair_robot_pushing_small  30 of 64x64, no caption
"""

import ml_collections

from nuwaxl_jax import config as config_lib

_FEATURES = {
    "moving_mnist": dict(tfds_video="image_sequence", tfds_caption=""),
    "ucf101": dict(tfds_video="video", tfds_caption="label"),
    "bair_robot_pushing_small": dict(tfds_video="image_main", tfds_caption=""),
}


def get_config(preset: str = "bair_robot_pushing_small") -> ml_collections.ConfigDict:
    """`default()` on that data; its clips are short, so the tree has two levels of 5 frames: 5, then 17."""
    if preset not in _FEATURES:
        raise config_lib.ConfigError(f"configs/tfds.py has no preset {preset!r}; choose one of {', '.join(_FEATURES)}")
    config = config_lib.default()
    config.name = preset.replace("_", "-")
    config.data.update(source="tfds", tfds_name=preset, level_weights=(1.0, 1.0), **_FEATURES[preset])
    config.hierarchy.update(segment_length=5, depth=2)
    config.train.vae.clip_length = config.train.denoiser.clip_length = 5
    config.train.image_denoiser.clip_length = 5
    config.sampler.update(steps=(32, 24), guidance=(2.0, 1.5), temperature=(1.0, 1.0))
    config.unet.condition_fill = ("zero", "linear")
    config.diffusion.line_std = (1.0, 1.0)
    return config
