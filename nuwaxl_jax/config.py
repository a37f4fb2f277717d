"""Every setting of the project, once, with a comment; and the checks that make a bad one fail early.

Marks in the comments: [P] the paper states it, [I] our inference from the paper or its pre-trained parts, [ours] the
paper is silent. The paper publishes no hyper-parameters, so nearly every number is ours (`../README.md` lists them).

`default()` is the shipped toons model. A file in `configs/` holds presets: `default()` plus overrides. `validate()`
raises `ConfigError` with one line that names the field and the mend.
"""

from __future__ import annotations

import json
from typing import Any, Mapping

import ml_collections

from nuwaxl_jax import config_rules

STAGES = config_rules.STAGES
VAE_STAGES = config_rules.VAE_STAGES
LPIPS_NONE = config_rules.LPIPS_NONE
ConfigError = config_rules.ConfigError
validate = config_rules.validate
validate_training = config_rules.validate_training
window_frames = config_rules.window_frames
vae_factor = config_rules.vae_factor
latent_shape = config_rules.latent_shape


def _stage(**overrides: Any) -> ml_collections.ConfigDict:
    """Settings of one training stage. All [ours]: the paper publishes no training recipe."""
    stage = ml_collections.ConfigDict(
        dict(
            batch_size=8,  # clips (single images in image_vae) of the global batch
            num_steps=1000,  # optimiser steps; the stage is finished at this step
            optimizer="muon",  # muon | adamw
            learning_rate=1e-3,  # peak
            pretrained_lr_ratio=1.0,  # rate of the layers that an image stage trained before, over that of new ones
            trainable="",  # pattern of the paths that learn; '' = all, 'new' = layers that no stage trained before
            warmup_steps=100,  # linear warm-up from 0
            lr_schedule="cosine",  # cosine | constant, after the warm-up
            min_lr_ratio=0.02,  # the cosine ends at learning_rate * min_lr_ratio
            weight_decay=0.01,  # AdamW, on kernels of two or more dimensions alone
            b1=0.9,  # Adam's first moment (with muon: of vectors and embeddings)
            b2=0.99,  # Adam's second moment
            grad_clip=1.0,  # global norm; 0 = off
            ema_decay=0.999,  # the limit; warm-up min(decay, (1 + t) / (10 + t))
            accumulate=1,  # micro-batches a step, their gradients averaged; divides batch_size
            dtype="float32",  # compute type: float32 | bfloat16 (parameters stay float32)
            clip_length=16,  # frames of a training clip; in image stages, single frames drawn from one episode
            log_every=50,  # steps between log lines: the one host sync
            sample_every=0,  # steps between sample videos; 0 = only at the end of the stage, -1 = none at all
            checkpoint_every=500,  # steps between checkpoints; one is always written at the end
            max_skipped=10,  # steps with a loss or gradient that is not finite that are left out between checkpoints
            keep=2,  # newest checkpoints kept; the next four keep others beside them
            keep_every=0,  # checkpoints at multiples of so many steps stay for ever; 0 = none
            keep_hours=0.0,  # one checkpoint in so many hours stays for ever; 0 = none
            keep_best=0,  # so many of the best by best_metric
            best_metric="loss",  # of the log (mean since the checkpoint before) or of an evaluation; '-x': highest x
        )
    )
    stage.update(overrides)
    return stage


def _data() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            source="toons",  # toons: the procedural cartoon; folder: videos at `path`; prepared: of --prepare; tfds
            path="",  # source=folder: a folder of videos and captions, or a manifest (nuwaxl_jax/data/README.md)
            tfds_name="",  # source=tfds: of the data set, as ucf101; `path` is then TFDS's data_dir
            tfds_video="video",  # source=tfds: feature that holds the frames; a/b reaches into nested ones
            tfds_caption="",  # source=tfds: feature that holds the caption or the class label; '' = none
            fps=0.0,  # source=folder: frames a second at which videos are taken, by time; 0 = frame by frame
            captions="",  # source=folder: a captions.jsonl of its own, before what the place says
            caption_fill="none",  # none | nearest: frames without a caption take the nearest one's
            eval_fraction=0.1,  # share of the videos in the valid split, and as many in the test split
            frame_size=64,  # pixels, height = width. Paper: 128 and 256 [P]
            num_episodes=100_000,  # toons: training episodes in one epoch (each made from its own seed)
            num_eval_episodes=64,  # toons: held-out episodes in the valid and in the test split
            episode_frames=4096,  # toons: frames an episode; at least one full window
            level_weights=(1.0, 3.0, 3.0),  # how often a training clip has the stride of level 0, 1, ...
            cache="",  # folder of latents made by --mode=data --cache; denoisers then train from it. '' = from frames
            max_bad=20,  # videos that turn out to be unreadable in training and are left out, before the run stops
            num_workers=0,  # processes that decode; 0 = threads of this process
            num_threads=1,  # threads that decode when num_workers is 0
            prefetch=4,  # batches ready ahead of the step
        )
    )


def _models() -> dict[str, ml_collections.ConfigDict]:
    text = ml_collections.ConfigDict(
        dict(
            tokenizer="words",  # words: closed vocabulary + hash buckets, no download [ours] | clip_bpe: CLIP's [I]
            vocabulary="",  # clip_bpe: a folder with CLIP's tokenizer files, or weights that carry them
            vocab_size=512,  # token ids, hash buckets of unknown words included
            max_tokens=20,  # tokens a prompt, bos and eos included. CLIP: 77
            width=128,  # channels of a text state. CLIP ViT-L/14: 768
            num_layers=2,  # CLIP ViT-L/14: 12
            num_heads=4,  # CLIP ViT-L/14: 12
            embedding_std=0.02,  # of a token's embedding at initialisation, of its place half of that. CLIP: 0.02
            per_frame=True,  # every frame its own prompt [P]; False: from level 1 on a segment has one (ablation)
        )
    )
    vae = ml_collections.ConfigDict(
        dict(
            channels=16,  # of the first level. kl-f8: 128 [I]
            channel_mults=(1, 2, 3, 4),  # one a level; factor = 2 ** (levels - 1). kl-f8: 1, 2, 4, 4 [I]
            num_res_blocks=1,  # a level in the encoder, one more in the decoder. kl-f8: 2 [I]
            latent_channels=8,  # kl-f8: 4 [I]
            temporal="conv_attn",  # none | conv | conv_attn [P]
            temporal_init="identity",  # identity [P] | random (Table 2a's ablation)
            temporal_padding="edge",  # of the temporal convolutions at a clip's ends: edge | zero [ours]
            # What a backward pass keeps of each block: none = all of it | products = its inputs and the results of its
            # convolutions and linear maps | blocks = its inputs alone. Memory for time, never the result. [ours]
            remat="none",
            loss="l1+l2",  # reconstruction: l1 | l2 | l1+l2. kl-f8: L1 + LPIPS + GAN [I]
            kl_weight=1e-4,  # times the KL per latent element, beside a loss per pixel value. [ours]
            logvar="fixed",  # of the reconstruction: fixed at 0, as kl-f8's optimiser leaves it [I] | learned
            perceptual_weight=0.0,  # of LPIPS, with VGG16, beside the reconstruction; 0 = off. kl-f8: 1 [I]
            lpips_weights="",  # safetensors of lpips.LPIPS(net="vgg")'s state; "" = without, and labelled so
            lpips_sha256="",  # the hash that file must have; "" = any. A run writes the one it has here, or "none"
            gan_weight=0.0,  # of the discriminator's term, beside its adaptive weight; 0 = off. kl-f8: 0.5 [I]
            gan_start=(0, 0),  # step of image_vae, of vae, at which it starts. kl-f8: 50001 [I]
            gan_channels=64,  # of its first layer [I]
            gan_layers=3,  # strided ones [I]
            gan_learning_rate=1e-4,  # its Adam's (0.5, 0.9), constant. kl-f8: 4.5e-6 an image of the batch [I]
        )
    )
    unet = ml_collections.ConfigDict(
        dict(
            channels=64,  # Stable Diffusion v1: 320 [I]
            channel_mults=(1, 2, 2),  # SD v1: 1, 2, 4, 4 [I]
            num_res_blocks=1,  # a level on the way down, one more on the way up. SD v1: 2 [I]
            num_heads=4,  # of every attention. SD v1: 8 [I]
            prompt_levels=(True, True, True),  # prompt attention at this level; SD v1: none at level 4 [F]
            mid_prompt=True,  # prompt attention in the middle block, as in SD v1
            downsample_padding="same",  # same | symmetric (SD v1: [I]) padding of the strided convolutions
            gelu="tanh",  # tanh | exact (SD v1: [I]) of the feed-forward
            ff_mult=2,  # feed-forward width over channels (GEGLU). SD v1: 4 [I]
            cond_channels=32,  # of the condition's down-convolutions [ours]
            temporal="conv_attn",  # none | conv | conv_attn [P]
            injection="down_up",  # none | top_up | up | down_up: Table 2b; down_up is the paper's [P]
            remat="none",  # none | products | blocks, as of the VAE [ours]
            # What the condition holds at frames to be made, at level 0, 1, ...: zero, masked [P] | linear, a blend of
            # the given frames [ours].
            condition_fill=("zero", "zero", "linear"),
        )
    )
    # weights: shared = one network with a level embedding [ours]; per_level = one network a level
    # ("a global", "first local", "second local diffusion model") [P names them, sharing is unstated].
    mtd = ml_collections.ConfigDict(dict(weights="shared"))
    return dict(text=text, vae=vae, unet=unet, mtd=mtd)


def _process() -> dict[str, ml_collections.ConfigDict]:
    diffusion = ml_collections.ConfigDict(
        dict(
            schedule="cosine",  # linear | scaled_linear | cosine [ours]
            num_timesteps=1000,  # T [ours]
            zero_terminal_snr=True,  # rescale so that x_T is pure noise (needs prediction v or x0) [ours]
            prediction="v",  # eps [P] | x0 | v; v works with zero terminal SNR [ours]
            weighting="uniform",  # uniform [P] | min_snr | snr
            min_snr_gamma=5.0,  # arXiv:2303.09556
            # How much more often the noisiest timestep is trained than were all trained alike (1.0: [P]), in the stage
            # `denoiser`; half of them lie beyond time_shift / (1 + time_shift) of the way (arXiv:2403.03206) [ours].
            time_shift=1.0,
            loss_on_given=True,  # loss over all L frames, given ones too [P]
            caption_dropout=0.1,  # share of clips trained with the empty prompt, for guidance [ours]
            unconditional_prob=0.05,  # share of local clips trained with no frame given [ours]
            first_only_prob=0.15,  # share of local clips with first frames alone given: the sliding window [ours]
            first_frames=1,  # of those clips: up to so many first frames are given, each number equally often [ours]
            # Frames between two given ones are predicted from the line between them, at level 0, 1, ...: standard
            # deviation of the latents around it halfway, where their own is 1; 1.0 = not used [ours].
            line_std=(1.0, 1.0, 0.85),
            cond_noise=0.0,  # std of noise on the condition latents in training (LVDM's remedy) [ours]
        )
    )
    sampler = ml_collections.ConfigDict(
        dict(
            method="ddim",  # ddim | euler | dpmpp_2m | ddpm (the paper's eq. 16) [P: ddpm]
            spacing="trailing",  # which timesteps are kept: trailing | leading | linspace (arXiv:2305.08891) [ours]
            steps=(32, 24, 4),  # denoiser steps at level 0, 1, 2 [ours]
            guidance=(2.0, 1.5, 1.0),  # classifier-free guidance scale a level; 1 = off, one call a step [ours]
            # Standard deviation of the noise that sampling starts from, at level 0, 1, ...; 1.0 samples the model, 0.0
            # takes what it thinks likely: at stride 1 the given frames leave little to choose [ours].
            temperature=(1.0, 0.7, 0.0),
            window_steps=8,  # of segments of stride 1 whose last frame is not given (windows; a video of one segment),
            window_temperature=1.0,  # in place of the last level's: without noise they stand still [ours]
            eta=0.0,  # DDIM's noise; 1 is ancestral
            guidance_rescale=0.0,  # how much of guidance's excess spread is taken back (arXiv:2305.08891)
            threshold=0.0,  # x0 clipped to this quantile of |x0|, e.g. 0.995; not divided by it as pixels are in
            # dynamic thresholding (arXiv:2205.11487): latents have no [-1, 1] to come back to; 0 = off [ours]
        )
    )
    hierarchy = ml_collections.ConfigDict(
        dict(
            segment_length=16,  # L [P: 16 for the main results]
            depth=3,  # levels, M [P: 3]; F = (L - 1) ** M + 1
            # diffusion_over_diffusion [P] | autoregressive, hierarchy_2, independent: baselines, see strategies.py
            strategy="diffusion_over_diffusion",
            handover="latent",  # latent [ours: no decoding between levels] | pixel [P, eq. 17]
            chunk=45,  # segments a device call: progress and memory, never the result
            microbatch=5,  # segments computed at once inside a call
            overlap=1,  # autoregressive, hierarchy_2: frames given from the window before
        )
    )
    return dict(diffusion=diffusion, sampler=sampler, hierarchy=hierarchy)


def default() -> ml_collections.ConfigDict:
    """The shipped toons model; every field of the project with its meaning, unit and the paper's value."""
    return ml_collections.ConfigDict(
        dict(
            name="toons-small",  # of the run, written into every output
            seed=0,  # of initialisation, data order, noise in training and in sampling
            data=_data(),
            **_models(),
            **_process(),
            train=dict(
                # In this order: the image KL-VAE, from it the T-KLVAE [P]; the denoiser's image part, standing in for
                # the paper's pre-trained text-to-image model [ours], and from it the denoiser [P].
                stages=STAGES,
                init_from="",  # weights that a stage starts from when no stage before it ran: imported, or of a run
                image_vae=_stage(batch_size=8, clip_length=1, num_steps=4000, learning_rate=5e-3),
                vae=_stage(batch_size=2, clip_length=16, num_steps=400, learning_rate=1e-3),
                image_denoiser=_stage(
                    batch_size=32, clip_length=4, num_steps=1600, learning_rate=5e-3, ema_decay=0.998
                ),
                denoiser=_stage(
                    batch_size=8,
                    clip_length=16,
                    num_steps=4000,
                    learning_rate=4e-3,
                    pretrained_lr_ratio=0.2,
                    ema_decay=0.998,
                ),
            ),
            mesh=dict(
                data=-1,  # devices along the batch; -1 = all that are left
                fsdp=1,  # devices over which parameters are sharded
                model=1,  # tensor parallelism
            ),
        )
    )


def study(config: ml_collections.ConfigDict) -> None:
    """Sizes and budget of the studies' arms (`experiments/study.py`), for any data set of a tree of three levels.

    Half the width of the shipped denoiser, half its clips a step and an eighth of the default's steps.
    """
    config.unet.update(channels=32, cond_channels=16)
    config.sampler.steps = (16, 12, 4)
    config.train.image_vae.update(num_steps=800)
    config.train.vae.update(num_steps=100)
    config.train.image_denoiser.update(batch_size=16, num_steps=500, ema_decay=0.99)
    config.train.denoiser.update(batch_size=4, num_steps=500, ema_decay=0.99)
    for name in STAGES:  # of checkpoints the last alone is kept
        config.train[name].update(warmup_steps=50, checkpoint_every=10_000, sample_every=-1)


def check_field(path: str) -> None:
    """Raises ConfigError if `path`, such as `unet.channels`, is no field of `default()`."""
    node, walked = default(), []
    for key in path.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or key not in node:
            known = ", ".join(sorted(node.keys())) if isinstance(node, ml_collections.ConfigDict) else "no fields"
            raise ConfigError(f"config.{path}: unknown key; {'.'.join(['config', *walked])} has {known}")
        node = node[key]
        walked.append(key)


def to_json(config: ml_collections.ConfigDict) -> str:
    """The resolved config as JSON: what checkpoints and weights carry, so that reading them runs no code."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def _merge(base: ml_collections.ConfigDict, values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise ConfigError(f"config.{name}: unknown key; known here: {', '.join(sorted(base.keys()))}")
        if isinstance(base[key], ml_collections.ConfigDict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"config.{name}: is a section, got {value!r}; give its fields")
            _merge(base[key], value, f"{name}.")
        else:
            try:
                base[key] = tuple(value) if isinstance(value, list) else value
            except (TypeError, ValueError) as error:
                problem = f"{value!r} has the wrong type ({error})"
                raise ConfigError(f"config.{name}: {problem}; see config.default()") from error


# What was done before these fields existed, at every level.
_BEFORE = {("unet", "condition_fill"): "zero", ("diffusion", "line_std"): 1.0, ("sampler", "temperature"): 1.0}


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads `to_json`'s text over `default()`; unknown fields are an error.

    A field younger than the text keeps its default, or, where it changes what a network computes, the value that the
    text's network was trained with (`_BEFORE`).
    """
    config = default()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config: not JSON ({error}); use the config.json written by training") from error
    _merge(config, values)
    for (section, field), before in _BEFORE.items():
        if field not in values.get(section, {}):
            config[section][field] = (before,) * config.hierarchy.depth
    return validate(config)


def completed(text: str) -> dict[str, Any]:
    """`to_json`'s text as JSON values, with the fields it is too old to have; as it is, if it is of no known config."""
    try:
        return json.loads(to_json(from_json(text)))
    except ConfigError:
        return json.loads(text)


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """`default()`, so that this file serves as `--config` where none is given."""
    if preset:
        raise ConfigError(f"config.py has no presets, got {preset!r}; use configs/toons.py:{preset}")
    return default()
