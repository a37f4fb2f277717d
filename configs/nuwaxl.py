"""The paper-sized system, from public image weights.

    python -m nuwaxl_jax.main --mode=import --source=PIPELINE --config=configs/nuwaxl.py:paper256 --weights=W
    python -m nuwaxl_jax.main --mode=train --config=configs/nuwaxl.py:paper256 --workdir=DIR \
        --config.data.path=VIDEOS --config.train.init_from=W --config.text.vocabulary=W

preset    frames          latents
paper128  128x128 pixels  16x16x4
paper256  256x256 pixels  32x32x4      (both sizes stand in the paper's comparison)

Marks as in config.default(). [P]: L = 16, depth 3, latents from a T-KLVAE, per-frame prompts in a CLIP text encoder,
epsilon with the mean squared error over all frames, masked pixels encoded by the T-KLVAE as condition, DDPM. [I]: what
the pre-trained parts fix: kl-f8, the U-Net of Stable Diffusion v1, ViT-L/14, their noise schedule. All else is ours:
the paper publishes no recipe.
"""

import ml_collections

from nuwaxl_jax import config as config_lib


def _parts(config: ml_collections.ConfigDict) -> None:
    config.text.update(
        tokenizer="clip_bpe",  # this and the next lines: CLIP ViT-L/14 [I]
        vocab_size=49408,
        max_tokens=77,
        width=768,
        num_layers=12,
        num_heads=12,
    )
    config.vae.update(
        channels=128,  # this and the next lines: kl-f8 [I]
        channel_mults=(1, 2, 4, 4),
        num_res_blocks=2,
        latent_channels=4,
        loss="l1",
        perceptual_weight=1.0,  # needs vae.lpips_weights; without the file the run goes on, labelled lpips: none
        gan_weight=0.5,
        gan_start=(0, 10_000),  # [ours]: the temporal layers settle first
        kl_weight=2.1e-8,  # 1e-6 of sums, as latent diffusion writes it
    )
    config.unet.update(
        channels=320,  # this and the next lines: Stable Diffusion v1 [I]
        channel_mults=(1, 2, 4, 4),
        num_res_blocks=2,
        num_heads=8,
        prompt_levels=(True, True, True, False),
        mid_prompt=True,
        downsample_padding="symmetric",
        gelu="exact",
        ff_mult=4,
        cond_channels=320,  # [ours]
        condition_fill=("zero", "zero", "zero"),  # masked [P]
    )
    config.mtd.weights = "per_level"  # the paper names a global, a first and a second local diffusion [P]


def _process(config: ml_collections.ConfigDict) -> None:
    config.diffusion.update(
        schedule="scaled_linear",  # Stable Diffusion v1 [I]
        zero_terminal_snr=False,  # [I]
        prediction="eps",  # [P]
        line_std=(1.0, 1.0, 1.0),  # not used
        unconditional_prob=0.0,  # given frames are always given [P]
        first_only_prob=0.0,
    )
    config.sampler.update(
        method="dpmpp_2m",  # [ours]: the paper's eq. 16 is ddpm, which takes several hundred steps
        steps=(25, 25, 25),
        window_steps=25,
        guidance=(7.5, 7.5, 7.5),  # Stable Diffusion v1's usual
        temperature=(1.0, 1.0, 1.0),
    )
    config.hierarchy.update(
        segment_length=16,  # [P]
        depth=3,  # [P]
        handover="pixel",  # eq. 17 [P]
        chunk=16,
        microbatch=1,
    )


def _training(config: ml_collections.ConfigDict) -> None:
    config.train.stages = ("vae", "denoiser")  # the image stages are what the public weights bring
    recipe = dict(optimizer="adamw", b2=0.999, warmup_steps=1000, lr_schedule="constant", dtype="bfloat16")
    config.train.vae.update(batch_size=16, num_steps=50_000, learning_rate=5e-5, checkpoint_every=1000, **recipe)
    config.train.denoiser.update(
        batch_size=64,
        num_steps=100_000,
        learning_rate=1e-4,  # of new layers
        trainable="unet",  # the text encoder stays as it is, as in Stable Diffusion [I]
        pretrained_lr_ratio=0.1,
        ema_decay=0.9999,
        checkpoint_every=1000,
        **recipe,
    )
    for stage in config_lib.STAGES:
        config.train[stage].log_every = 50


def _preset(frame_size: int) -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.name = f"nuwaxl-paper{frame_size}"
    config.data.update(source="folder", frame_size=frame_size, num_workers=8, level_weights=(1.0, 1.0, 1.0))
    _parts(config)
    _process(config)
    _training(config)
    return config


_SIZES = {"paper128": 128, "paper256": 256}


def get_config(preset: str = "paper256") -> ml_collections.ConfigDict:
    """`default()` with the preset's overrides."""
    if preset not in _SIZES:
        raise config_lib.ConfigError(f"configs/nuwaxl.py has no preset {preset!r}; choose one of {', '.join(_SIZES)}")
    return _preset(_SIZES[preset])
