"""The rules a config must keep, each with one line for who breaks it; and the sizes that follow from a config."""

from __future__ import annotations

import re

import ml_collections

STAGES = ("image_vae", "vae", "image_denoiser", "denoiser")
VAE_STAGES = ("image_vae", "vae")
IMAGE_STAGES = ("image_vae", "image_denoiser")  # their clips are single frames, drawn from anywhere in an episode

LPIPS_NONE = "none"  # vae.lpips_sha256 of a run that asked for LPIPS and went on without
_LPIPS_MIN_SIZE = 16  # pixels

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("toons", "folder", "prepared", "tfds"),
    "data.caption_fill": ("none", "nearest"),
    "text.tokenizer": ("words", "clip_bpe"),
    "vae.loss": ("l1", "l2", "l1+l2"),
    "vae.logvar": ("fixed", "learned"),
    "vae.temporal": ("none", "conv", "conv_attn"),
    "vae.temporal_init": ("identity", "random"),
    "vae.temporal_padding": ("edge", "zero"),
    "vae.remat": ("none", "products", "blocks"),
    "unet.temporal": ("none", "conv", "conv_attn"),
    "unet.downsample_padding": ("same", "symmetric"),
    "unet.gelu": ("tanh", "exact"),
    "unet.remat": ("none", "products", "blocks"),
    "unet.injection": ("none", "top_up", "up", "down_up"),
    "mtd.weights": ("shared", "per_level"),
    "diffusion.schedule": ("linear", "scaled_linear", "cosine"),
    "diffusion.prediction": ("eps", "x0", "v"),
    "diffusion.weighting": ("uniform", "min_snr", "snr"),
    "sampler.method": ("ddim", "euler", "dpmpp_2m", "ddpm"),
    "sampler.spacing": ("trailing", "leading", "linspace"),
    "hierarchy.strategy": ("diffusion_over_diffusion", "autoregressive", "hierarchy_2", "independent", "side_by_side"),
    "hierarchy.handover": ("latent", "pixel"),
}


class ConfigError(ValueError):
    """A setting that cannot work. The message is one line: the field, what is wrong, the mend."""


def window_frames(config: ml_collections.ConfigDict) -> int:
    """F = (L - 1) ** M + 1, the frames of the full tree."""
    return (config.hierarchy.segment_length - 1) ** config.hierarchy.depth + 1


def vae_factor(config: ml_collections.ConfigDict) -> int:
    """Pixels a latent, along height and along width."""
    return 2 ** (len(config.vae.channel_mults) - 1)


def latent_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(h, w, c) of one frame's latent."""
    side = config.data.frame_size // vae_factor(config)
    return side, side, config.vae.latent_channels


def _require(condition: bool, field: str, problem: str, mend: str) -> None:
    if not condition:
        raise ConfigError(f"config.{field}: {problem}; {mend}")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _check_stage(config: ml_collections.ConfigDict, name: str) -> None:
    stage = config.train[name]
    field = f"train.{name}"
    _require(stage.batch_size >= 1, f"{field}.batch_size", "must be at least 1", "set a positive number of clips")
    _require(
        stage.accumulate >= 1 and stage.batch_size % stage.accumulate == 0,
        f"{field}.accumulate",
        f"{stage.accumulate} does not divide batch_size {stage.batch_size}",
        "choose a divisor",
    )
    known = stage.dtype in ("float32", "bfloat16")
    _require(known, f"{field}.dtype", f"unknown type {stage.dtype!r}", "use float32 or bfloat16")
    known = stage.lr_schedule in ("cosine", "constant")
    _require(known, f"{field}.lr_schedule", f"unknown schedule {stage.lr_schedule!r}", "use cosine or constant")
    known = stage.optimizer in ("adamw", "muon")
    _require(known, f"{field}.optimizer", f"unknown optimiser {stage.optimizer!r}", "use adamw or muon")
    _require(
        stage.pretrained_lr_ratio == 1 or (stage.pretrained_lr_ratio >= 0 and name not in IMAGE_STAGES),
        f"{field}.pretrained_lr_ratio",
        f"{stage.pretrained_lr_ratio} is negative, or the stage has no layers that another trained before",
        "use 1, or 0 and more in vae and denoiser",
    )
    _require(
        _is_pattern(stage.trainable) and not (stage.trainable == "new" and name in IMAGE_STAGES),
        f"{field}.trainable",
        f"{stage.trainable!r} is no regular expression, or the stage has no new layers",
        "use '' for all, 'new' in vae and denoiser, or a pattern of parameter paths such as temporal|injection",
    )
    _require(stage.num_steps >= 1, f"{field}.num_steps", "must be at least 1", "set the number of optimiser steps")
    _require(stage.log_every >= 1, f"{field}.log_every", "must be at least 1", "set steps between log lines")
    _require(stage.checkpoint_every >= 1, f"{field}.checkpoint_every", "must be at least 1", "set steps between them")
    _require(stage.sample_every >= -1, f"{field}.sample_every", "is below -1", "0: at the end alone, -1: never")
    _require(stage.max_skipped >= 0, f"{field}.max_skipped", "is negative", "0 ends the run at the first such step")
    _check_keep(stage, field)
    least, length = 2 if name == "denoiser" else 1, config.hierarchy.segment_length
    _require(
        least <= stage.clip_length <= length,
        f"{field}.clip_length",
        f"{stage.clip_length} is not in {least}..{length}",
        "a clip has at most hierarchy.segment_length frames, and a single one has no level for a denoiser to learn",
    )


def _check_keep(stage: ml_collections.ConfigDict, field: str) -> None:
    _require(stage.keep >= 1, f"{field}.keep", "must be at least 1", "set how many of the newest checkpoints stay")
    for name in ("keep_every", "keep_hours", "keep_best"):
        _require(stage[name] >= 0, f"{field}.{name}", f"{stage[name]} is negative", "use 0 for none, or more")
    _require(
        stage.keep_every % stage.checkpoint_every == 0,
        f"{field}.keep_every",
        f"{stage.keep_every} is not a multiple of checkpoint_every {stage.checkpoint_every}",
        f"use {max(1, round(stage.keep_every / stage.checkpoint_every)) * stage.checkpoint_every}, or 0 for none",
    )
    _require(bool(stage.best_metric.strip("-")), f"{field}.best_metric", "is empty", "name a metric, such as loss")


def _check_models(config: ml_collections.ConfigDict) -> None:
    factor = vae_factor(config)
    size = config.data.frame_size
    _require(
        size % factor == 0,
        "data.frame_size",
        f"{size} is not a multiple of the VAE's factor {factor}",
        "change frame_size or the number of vae.channel_mults",
    )
    unet_factor = 2 ** (len(config.unet.channel_mults) - 1)
    side = size // factor
    _require(
        side % unet_factor == 0,
        "unet.channel_mults",
        f"a latent of {side} pixels cannot be halved {len(config.unet.channel_mults) - 1} times",
        "use fewer levels or larger frames",
    )
    for name in ("vae", "unet"):
        channels = config[name].channels
        problem = f"{channels} is odd or below 2, and a group norm takes channels together in pairs or more"
        _require(channels >= 2 and channels % 2 == 0, f"{name}.channels", problem, "use an even number, such as 16")
    heads = config.unet.num_heads
    for mult in config.unet.channel_mults:
        _require(
            config.unet.channels * mult % heads == 0,
            "unet.num_heads",
            f"{heads} heads do not divide {config.unet.channels * mult} channels",
            "change channels or heads",
        )
    _require(
        len(config.unet.prompt_levels) == len(config.unet.channel_mults),
        "unet.prompt_levels",
        f"{len(config.unet.prompt_levels)} entries for {len(config.unet.channel_mults)} levels",
        "give one a level",
    )
    _require(
        config.text.width % config.text.num_heads == 0,
        "text.num_heads",
        f"{config.text.num_heads} heads do not divide width {config.text.width}",
        "change width or heads",
    )
    _require(config.text.vocab_size > 60, "text.vocab_size", "60 ids are the toons' own words", "use more, such as 512")
    _require(config.text.embedding_std > 0, "text.embedding_std", "all words start alike", "use CLIP's 0.02, or 1.0")
    _require(config.text.max_tokens >= 3, "text.max_tokens", "must hold bos, one word and eos", "use at least 3")


def _check_objective(config: ml_collections.ConfigDict) -> None:
    vae, size = config.vae, config.data.frame_size
    for name in ("perceptual_weight", "gan_weight", "gan_learning_rate"):
        _require(vae[name] >= 0, f"vae.{name}", f"{vae[name]} is negative", "0 turns it off")
    _require(
        vae.perceptual_weight == 0 or size >= _LPIPS_MIN_SIZE,
        "vae.perceptual_weight",
        f"LPIPS halves a frame four times, and data.frame_size is {size}",
        f"use frames of {_LPIPS_MIN_SIZE} pixels or more, or 0",
    )
    hexadecimal = len(vae.lpips_sha256) == 64 and set(vae.lpips_sha256) <= set("0123456789abcdef")
    _require(
        hexadecimal or vae.lpips_sha256 in ("", LPIPS_NONE),
        "vae.lpips_sha256",
        f"{vae.lpips_sha256!r} is no SHA-256",
        "give the 64 hexadecimal digits that sha256sum prints, or leave it empty",
    )
    _require(
        len(vae.gan_start) == len(VAE_STAGES) and min(vae.gan_start) >= 0,
        "vae.gan_start",
        f"{tuple(vae.gan_start)} is not a step of image_vae and one of vae",
        "give two, such as (2000, 0)",
    )
    _require(
        vae.gan_channels >= 1 and vae.gan_layers >= 1,
        "vae.gan_layers",
        "these, and gan_channels, must be at least 1",
        "64 channels and 3 layers are usual",
    )
    _require(
        vae.gan_weight == 0 or size >= 3 * 2**vae.gan_layers,
        "vae.gan_layers",
        f"{vae.gan_layers} strided layers leave no patch of a frame of {size} pixels",
        f"frames must have {3 * 2**vae.gan_layers} pixels or more; use fewer layers",
    )


def _check_hierarchy(config: ml_collections.ConfigDict) -> None:
    tree = config.hierarchy
    problem = "a segment needs two borders and a middle frame"
    _require(tree.segment_length >= 3, "hierarchy.segment_length", problem, "use at least 3")
    _require(tree.depth >= 1, "hierarchy.depth", "must be at least 1", "1 is global diffusion alone")
    problem = "False gives segments from level 1 on one prompt, and depth 1 has none"
    _require(config.text.per_frame or tree.depth > 1, "text.per_frame", problem, "use hierarchy.depth=2 or more")
    _require(
        tree.chunk >= 0 and tree.microbatch >= 1,
        "hierarchy.microbatch",
        "must be at least 1 (chunk at least 0)",
        "chunk 0 is a whole level at once",
    )
    first = config.diffusion.first_frames
    for field, value in (("hierarchy.overlap", tree.overlap), ("diffusion.first_frames", first)):
        problem = f"{value} is not in 1..{tree.segment_length - 1}"
        _require(1 <= value < tree.segment_length, field, problem, "give fewer frames than a segment has")
    kept = first == 1 or tree.handover == "latent" or not config.data.cache
    problem = "kept latents of masked videos are of the first frame alone"
    _require(kept, "diffusion.first_frames", problem, "leave data.cache empty, or use hierarchy.handover=latent")
    for field, values in (
        ("sampler.steps", config.sampler.steps),
        ("sampler.guidance", config.sampler.guidance),
        ("sampler.temperature", config.sampler.temperature),
        ("data.level_weights", config.data.level_weights),
        ("unet.condition_fill", config.unet.condition_fill),
        ("diffusion.line_std", config.diffusion.line_std),
    ):
        _require(
            len(values) == tree.depth,
            field,
            f"{len(values)} entries for {tree.depth} levels",
            "give one a level of hierarchy.depth",
        )
    _require(
        all(0 < std <= 1 for std in config.diffusion.line_std),
        "diffusion.line_std",
        f"{tuple(config.diffusion.line_std)} has an entry outside (0, 1]",
        "give the standard deviation halfway between given frames, 1.0 where the line is not to be used",
    )
    _require(
        set(config.unet.condition_fill) <= {"zero", "linear"},
        "unet.condition_fill",
        f"{tuple(config.unet.condition_fill)} has an unknown one",
        "choose zero or linear",
    )
    fps = config.data.fps
    _require(0 <= fps <= 1000, "data.fps", f"{fps:g} is not in 0..1000", "0 takes videos frame by frame")
    bad = config.data.max_bad
    _require(bad >= 0, "data.max_bad", f"{bad} is negative", "0 stops the run at the first bad video")
    share = config.data.eval_fraction
    _require(0 <= share < 0.5, "data.eval_fraction", f"{share} is not in 0..0.5", "0.1 keeps a tenth for each")
    _require(
        min(config.data.level_weights) >= 0 and sum(config.data.level_weights) > 0,
        "data.level_weights",
        "must be non-negative and not all zero",
        "0 leaves a level out of training",
    )
    frames = window_frames(config)
    if config.data.source == "toons":
        _require(
            config.data.episode_frames >= frames,
            "data.episode_frames",
            f"{config.data.episode_frames} is shorter than the window of {frames} frames",
            "lengthen it or lower hierarchy.depth",
        )


def _check_sampler(config: ml_collections.ConfigDict) -> None:
    steps_max = config.diffusion.num_timesteps
    _require(
        all(1 <= s <= steps_max for s in (*config.sampler.steps, config.sampler.window_steps)),
        "sampler.steps",
        f"each, and window_steps, must be in 1..{steps_max}",
        "use fewer steps than diffusion.num_timesteps",
    )
    sampler = config.sampler
    _require(0 <= sampler.eta <= 1, "sampler.eta", f"{sampler.eta} is not in 0..1", "0 is DDIM, 1 is ancestral")
    _require(
        sampler.method == "ddim" or sampler.eta == 0,
        "sampler.eta",
        f"{sampler.eta} means nothing to {sampler.method}",
        "set it to 0 or use method=ddim",
    )
    _require(
        min(*sampler.temperature, sampler.window_temperature) >= 0,
        "sampler.temperature",
        f"{tuple(sampler.temperature)} or window_temperature has a negative entry",
        "1.0 is the model's own noise, 0.0 none",
    )
    for name in ("guidance_rescale", "threshold"):
        value = sampler[name]
        _require(0 <= value <= 1, f"sampler.{name}", f"{value} is not in 0..1", "0 turns it off")


def validate_training(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`validate`, and what training alone needs.

    Raises:
      ConfigError: as `validate`.
    """
    _require(
        config.data.source not in ("folder", "prepared") or bool(config.data.path),
        "data.path",
        "is empty",
        "give the folder of videos, or the prepared one, with --config.data.path=DIR",
    )
    _require(
        config.data.source != "tfds" or bool(config.data.tfds_name),
        "data.tfds_name",
        "is empty",
        "name the TFDS data set, as configs/tfds.py does",
    )
    _require(
        config.text.tokenizer != "clip_bpe" or bool(config.text.vocabulary),
        "text.vocabulary",
        "is empty",
        "give a folder with CLIP's vocab.json and merges.txt, or imported weights, which carry them",
    )
    validate(config)
    for stage, start in zip(VAE_STAGES, config.vae.gan_start):
        if config.vae.gan_weight > 0 and stage in config.train.stages:
            _require(
                start < config.train[stage].num_steps,
                "vae.gan_start",
                f"{start} is not before the end of {stage} at {config.train[stage].num_steps} steps",
                "start the discriminator earlier, or set vae.gan_weight to 0",
            )
    return config


def validate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Checks every rule that does not need the data or the devices; returns `config` unchanged.

    Raises:
      ConfigError: one line that names the field, the problem and the mend.
    """
    for field, choices in _CHOICES.items():
        section, key = field.split(".")
        value = config[section][key]
        _require(value in choices, field, f"unknown value {value!r}", f"choose one of {', '.join(choices)}")
    _require(
        set(config.train.stages) <= set(STAGES) and len(config.train.stages) > 0,
        "train.stages",
        f"{tuple(config.train.stages)} has an unknown stage or none",
        f"choose from {', '.join(STAGES)}",
    )
    _require(
        not (config.diffusion.zero_terminal_snr and config.diffusion.prediction == "eps"),
        "diffusion.prediction",
        "eps is undefined at zero terminal SNR",
        "use v or x0, or diffusion.zero_terminal_snr=False",
    )
    probabilities = ("caption_dropout", "unconditional_prob", "first_only_prob")
    for key in probabilities:
        _require(0 <= config.diffusion[key] <= 1, f"diffusion.{key}", "is not a probability", "use 0 to 1")
    noise = config.diffusion.cond_noise
    _require(noise >= 0, "diffusion.cond_noise", f"{noise} is negative", "0 turns it off; 1 is the latents' own spread")
    shift = config.diffusion.time_shift
    _require(shift > 0, "diffusion.time_shift", f"{shift} is not positive", "1.0 trains every timestep equally often")
    _require(
        config.diffusion.unconditional_prob + config.diffusion.first_only_prob <= 1,
        "diffusion.first_only_prob",
        "exceeds 1 together with unconditional_prob",
        "lower one of them",
    )
    _require(
        config.vae.temporal_init == "identity"
        or config.vae.temporal == "none"
        or "image_vae" not in config.train.stages
        or "vae" in config.train.stages,
        "vae.temporal_init",
        "random temporal layers that no stage trains",
        "add 'vae' to train.stages or use identity",
    )
    _check_models(config)
    _check_objective(config)
    _check_hierarchy(config)
    _check_sampler(config)
    for name in config.train.stages:
        _check_stage(config, name)
    return config
