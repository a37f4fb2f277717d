"""toons, the procedural cartoon: presets of the model that ships.

    python -m nuwaxl_jax.main --mode=train --config=configs/toons.py:small --workdir=runs/small

preset  what it is                                               on 2 CPU cores
tiny    every part at its smallest, for tests                    seconds
quick   from nothing to a recognisable video                     17 minutes with --cpu_devices=2
small   the shipped model's size (experiments/toons_small)       hours with --cpu_devices=2
motion  what comes after it, from its weights (train.init_from)  hours with --cpu_devices=2
study   arms of the studies (experiments/study.py)               7 to 11 minutes an arm on one core, from its start on
"""

import ml_collections

from nuwaxl_jax import config as config_lib


def _tiny(config: ml_collections.ConfigDict) -> None:
    """Seconds: 28 frames from segments of 4 in 3 levels, 16-pixel frames."""
    config.data.update(frame_size=16, num_episodes=16, num_eval_episodes=4, episode_frames=64, prefetch=1)
    config.text.update(width=16, num_layers=1, num_heads=2)
    config.vae.update(channels=4, channel_mults=(1, 2), latent_channels=4)
    config.unet.update(channels=8, channel_mults=(1, 2), prompt_levels=(True, True), num_heads=2, cond_channels=4)
    config.diffusion.update(num_timesteps=50)
    config.sampler.update(steps=(3, 2, 2), window_steps=2, guidance=(2.0, 1.0, 1.0), temperature=(1.0, 1.0, 1.0))
    config.hierarchy.update(segment_length=4, depth=3, chunk=4, microbatch=2)
    for name in config_lib.STAGES:
        config.train[name].update(batch_size=4, num_steps=6, warmup_steps=2, log_every=2, checkpoint_every=3)
    config.train.vae.clip_length = 4
    config.train.image_denoiser.clip_length = 2
    config.train.denoiser.clip_length = 4


def _quick(config: ml_collections.ConfigDict) -> None:
    """All stages in 17 minutes on 2 cores: fewer steps."""
    config.train.image_vae.update(num_steps=800)
    config.train.vae.update(num_steps=60)
    config.train.image_denoiser.update(num_steps=350, ema_decay=0.99)
    config.train.denoiser.update(num_steps=330, ema_decay=0.99)


def _small(config: ml_collections.ConfigDict) -> None:
    """Of the shipped model's size, the first part of its training: every timestep equally often, more of level 1."""
    config.data.level_weights = (1.0, 4.0, 2.0)
    config.diffusion.first_only_prob = 0.3
    config.text.embedding_std = 1.0


def _motion(config: ml_collections.ConfigDict) -> None:
    """The second part: the denoiser goes on from `small`'s weights (`train.init_from`) at noisier timesteps.

    There it is decided who will go where, from captions alone. Trained so from the start, it did not learn left from
    right (experiments/levels).
    """
    _small(config)
    config.diffusion.time_shift = 3.0
    config.train.stages = ("denoiser",)
    config.train.denoiser.update(num_steps=3000, learning_rate=2e-3, pretrained_lr_ratio=1.0)


_PRESETS = {"tiny": _tiny, "quick": _quick, "small": _small, "motion": _motion, "study": config_lib.study}


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    """`default()` with the preset's overrides."""
    if preset not in _PRESETS:
        raise config_lib.ConfigError(f"configs/toons.py has no preset {preset!r}; choose one of {', '.join(_PRESETS)}")
    config = config_lib.default()
    config.name = f"toons-{preset}"
    _PRESETS[preset](config)
    return config
