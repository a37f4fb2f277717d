"""A weight file's image networks back in public layouts: a folder that diffusers opens, or one file in ldm names.

The layout holds images alone: temporal layers, injections and level embeddings stay behind. Its latents have one factor
and no shift; those of other statistics are made so inside the VAE, by `folded`.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any, Mapping

from flax import traverse_util
import ml_collections
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import weights
from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.importing import parts
from nuwaxl_jax.importing import trees
from nuwaxl_jax.importing.tensors import WeightsError

_FILES = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
_FOLDED = ("encoder/quant/kernel", "encoder/quant/bias", "decoder/post_quant/kernel", "decoder/post_quant/bias")


def run(path: str | os.PathLike, out: str, style: str, level: int = 0) -> None:
    """Writes `out`, a folder ('diffusers') or a .safetensors file ('ldm'), in the dtype that the weights are stored in.

    Args:
      path: a weight file of ours.
      out: must not exist.
      style: of `names.STYLES`.
      level: whose denoiser is written, where each level has its own.

    Raises:
      WeightsError: networks that have no equal in that layout; `out` exists.
    """
    if os.path.exists(out):
        raise WeightsError(f"--out: {out} exists; name a new one")
    bundle, config, card = weights.load(path)
    _check_has_equal(config)
    if level >= len(bundle["denoisers"]):
        raise WeightsError(
            f"--level: {level}, but these weights have {len(bundle['denoisers'])} denoisers; give a lower"
        )
    denoiser = bundle["denoisers"][level]
    dtype = np.dtype(card["dtype"])
    vae, factor = _vae_and_factor(bundle, style, dtype)
    trees_of = dict(vae=vae, unet=denoiser["unet"], text_encoder=denoiser["text"])
    prefix = card.get("text_prefix") if style == "diffusers" else None  # as they were read
    tensors = {
        part: {
            name: value.astype(dtype)
            for name, value in trees.tensors_of(parts.entries_of(config, part, style, prefix), trees_of[part]).items()
        }
        for part in parts.PARTS
    }
    part_way = pathlib.Path(f"{os.fspath(out).rstrip('/')}.part")
    if style == "ldm":
        schedule = {"alphas_cumprod": parts.alphas_cumprod(config).astype(np.float32)}
        weights.save_tensors(part_way, tensors["vae"] | tensors["unet"] | tensors["text_encoder"] | schedule)
    else:
        shutil.rmtree(part_way, ignore_errors=True)
        _write_folder(part_way, tensors, settings_of(config, factor))
        if config.text.tokenizer == "clip_bpe":
            _write_tokenizer(part_way / "tokenizer", clip_bpe.read(config.text.vocabulary), config.text.max_tokens)
    os.replace(part_way, out)


def _vae_and_factor(bundle: weights.Bundle, style: str, dtype: np.dtype) -> tuple[Mapping[str, Any], float]:
    """The VAE to write, and what readers multiply its latents by."""
    shift, scale = bundle["latent_shift"], bundle["latent_scale"]
    if not np.any(shift) and np.all(scale == scale[0]):
        return bundle["vae"], float(scale[0])
    factor = parts.SCALING_FACTOR if style == "ldm" else 1.0  # a single file names none, and readers take that one
    vae = folded(bundle["vae"], shift, np.asarray(scale, np.float64) / factor)
    leaves = traverse_util.flatten_dict(vae, sep="/")
    for name in _FOLDED:
        if not np.abs(leaves[name]).max() <= np.finfo(dtype).max:
            raise WeightsError(f"vae/{name}: with the latents' scale in it, it does not fit {dtype}; store float32")
    return vae, factor


def folded(vae: Mapping[str, Any], shift: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    """The VAE whose latents z' are (z - shift) * scale of the given one's z, by its two 1x1 convolutions alone.

    Both moments move, mean' = (mean - shift) * scale and logvar' = logvar + 2 log scale, and the decoder takes z'.
    Bounds on the log-variance, [-30, 20] there as here, then hold for logvar'.

    Args:
      vae: our tree.
      shift, scale: [c].
    """
    shift, scale = np.asarray(shift, np.float64), np.asarray(scale, np.float64)
    leaves = traverse_util.flatten_dict(vae, sep="/")
    kernel, bias, from_kernel, from_bias = (np.asarray(leaves[name], np.float64) for name in _FOLDED)
    both = np.concatenate([scale, np.ones_like(scale)])
    moved = np.concatenate([-shift * scale, 2.0 * np.log(scale)])
    made = (
        kernel * both,  # [1, 1, 2c, 2c], the last axis is mean, then log-variance
        bias * both + moved,
        from_kernel / scale[:, None],  # [1, 1, c, c]
        from_bias + shift @ from_kernel[0, 0],
    )
    leaves |= {name: value.astype(np.float32) for name, value in zip(_FOLDED, made)}
    return traverse_util.unflatten_dict(leaves, sep="/")


def _check_has_equal(config: ml_collections.ConfigDict) -> None:
    """Public image networks have one group norm, one activation, one padding; ours can have others."""
    rules = (
        ("vae.channels", config.vae.channels % 64 == 0, "group norms of 32 groups take multiples of 64 channels"),
        ("unet.channels", config.unet.channels % 64 == 0, "group norms of 32 groups take multiples of 64 channels"),
        ("unet.gelu", config.unet.gelu == "exact", "the feed-forward there has the exact GELU"),
        ("unet.ff_mult", config.unet.ff_mult == 4, "the feed-forward there is four times as wide"),
        ("unet.downsample_padding", config.unet.downsample_padding == "symmetric", "padding there is all round"),
    )
    for field, fits, reason in rules:
        if not fits:
            raise WeightsError(f"config.{field}: these networks have no equal in that layout ({reason}); use ours")


def settings_of(config: ml_collections.ConfigDict, scaling_factor: float) -> dict[str, dict[str, Any]]:
    """Folder -> its config.json, in diffusers' and transformers' fields."""
    vae, unet, text = config.vae, config.unet, config.text
    down = ["CrossAttnDownBlock2D" if p else "DownBlock2D" for p in unet.prompt_levels]
    up = ["CrossAttnUpBlock2D" if p else "UpBlock2D" for p in reversed(unet.prompt_levels)]
    known = clip_bpe.read(text.vocabulary) if text.tokenizer == "clip_bpe" else None
    side = config.data.frame_size // 2 ** (len(vae.channel_mults) - 1)
    return {
        "vae": dict(
            _class_name="AutoencoderKL",
            in_channels=3,
            out_channels=3,
            block_out_channels=[vae.channels * m for m in vae.channel_mults],
            down_block_types=["DownEncoderBlock2D"] * len(vae.channel_mults),
            up_block_types=["UpDecoderBlock2D"] * len(vae.channel_mults),
            layers_per_block=vae.num_res_blocks,
            latent_channels=vae.latent_channels,
            norm_num_groups=32,
            sample_size=config.data.frame_size,
            scaling_factor=scaling_factor,
        ),
        "unet": dict(
            _class_name="UNet2DConditionModel",
            in_channels=vae.latent_channels,
            out_channels=vae.latent_channels,
            block_out_channels=[unet.channels * m for m in unet.channel_mults],
            down_block_types=down,
            up_block_types=up,
            layers_per_block=unet.num_res_blocks,
            cross_attention_dim=text.width,
            attention_head_dim=unet.num_heads,
            sample_size=side,
        ),
        "text_encoder": dict(
            architectures=["CLIPTextModel"],
            model_type="clip_text_model",
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.num_layers,
            num_attention_heads=text.num_heads,
            max_position_embeddings=text.max_tokens,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            bos_token_id=known.ids[clip_bpe.BOS] if known else 1,
            eos_token_id=known.ids[clip_bpe.EOS] if known else 2,
            pad_token_id=known.ids[known.pad] if known else 0,
        ),
        "scheduler": dict(
            _class_name="DDIMScheduler",
            **parts.scheduler_settings(config),
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }


def _write_folder(
    place: pathlib.Path, tensors: Mapping[str, Mapping[str, np.ndarray]], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    for folder, values in settings.items():
        (place / folder).mkdir(parents=True)
        name = "scheduler_config.json" if folder == "scheduler" else "config.json"
        files.write_json(str(place / folder / name), dict(values))
        if folder in tensors:
            weights.save_tensors(place / folder / f"{_FILES[folder]}.safetensors", tensors[folder])


def _write_tokenizer(place: pathlib.Path, known: clip_bpe.Vocabulary, max_tokens: int) -> None:
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps(known.ids, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in known.merges), ""])
    (place / "merges.txt").write_text(merges, encoding="utf-8")
    settings = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=max_tokens,
        bos_token=clip_bpe.BOS,
        eos_token=clip_bpe.EOS,
        unk_token=clip_bpe.EOS,
        pad_token=known.pad,
    )
    files.write_json(str(place / "tokenizer_config.json"), settings)
