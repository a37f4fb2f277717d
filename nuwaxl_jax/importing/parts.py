"""The three image networks of a config, as public files have them: where they lie, their tables, their settings.

What shapes cannot tell (heads, activations, the noise schedule) is read from the `config.json` beside the tensors, or
in a single-file checkpoint from its noise table, and compared with the config.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Iterator, Mapping

import ml_collections
import numpy as np

from nuwaxl_jax.diffusion import schedules
from nuwaxl_jax.importing import names
from nuwaxl_jax.importing.tensors import Tensors
from nuwaxl_jax.importing.tensors import WeightsError

PARTS = ("vae", "unet", "text_encoder")
_LDM_TEXT = "cond_stage_model.transformer.text_model."
# Of a single file, what belongs to no network: the noise tables, the average beside the weights, counted positions.
_LDM_OTHER = (
    *("alphas_cumprod", "betas", "sqrt_", "log_one_minus", "posterior_", "model_ema.", "logvar", "lvlb_weights"),
    *("first_stage_model.loss.", f"{_LDM_TEXT}embeddings.position_ids", "cond_stage_model.transformer.visual"),
)
_IGNORED = {"vae": (), "unet": (), "text_encoder": ("text_model.embeddings.position_ids", "embeddings.position_ids")}
# scheduler_config.json's key -> the field of config.diffusion.
_SCHEDULER_FIELDS = {
    "prediction_type": "prediction",
    "beta_schedule": "schedule",
    "num_train_timesteps": "num_timesteps",
    "rescale_betas_zero_snr": "zero_terminal_snr",
}
_SCHEDULER_DEFAULTS = dict(
    prediction_type="epsilon",
    beta_schedule="linear",
    num_train_timesteps=1000,
    rescale_betas_zero_snr=False,
    beta_start=1e-4,
    beta_end=2e-2,
    trained_betas=None,
)
SCALING_FACTOR = 0.18215  # of Stable Diffusion v1's latents: 1 / their standard deviation


@dataclasses.dataclass(frozen=True)
class Source:
    """One network's files.

    Attributes:
      part: of `PARTS`.
      style: of `names.STYLES`.
      tensors: of its files (in a single file, of all networks).
      settings: its `config.json`; {} where there is none.
    """

    part: str
    style: str
    tensors: Tensors
    settings: Mapping[str, Any]

    def ignored(self) -> tuple[str, ...]:
        """Tensors, or beginnings of theirs, that have no place and need none."""
        if self.style == "diffusers":
            return _IGNORED[self.part]
        own = {"vae": "first_stage_model.", "unet": "model.diffusion_model.", "text_encoder": "cond_stage_model."}
        return (*_LDM_OTHER, *(prefix for part, prefix in own.items() if part != self.part))


def find(source: str, given: Mapping[str, str]) -> dict[str, Source]:
    """part -> its files.

    Args:
      source: a pipeline folder (`vae/`, `unet/`, `text_encoder/`), or a single-file checkpoint; '' if all are given.
      given: part -> its own folder or file, which goes before `source`'s; '' and absent parts are not given.

    Raises:
      WeightsError: files that are missing, damaged or pickled.
    """
    found: dict[str, Source] = {}
    for part in PARTS:
        if given.get(part):
            found[part] = _of_part(part, pathlib.Path(given[part]))
    if not source:
        return found
    place = pathlib.Path(source)
    single = None
    for part in (p for p in PARTS if p not in found):
        if (place / part).is_dir():
            found[part] = _of_part(part, place / part)
        elif place.is_dir():
            continue
        else:
            single = single or Tensors(place)
            found[part] = Source(part, "ldm", single, {})
    if not found:
        raise WeightsError(f"{source}: holds none of {', '.join(PARTS)}; give a pipeline folder or a single file")
    return found


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file}: is no JSON ({error}); fetch it again") from error


def _of_part(part: str, place: pathlib.Path) -> Source:
    file = (place if place.is_dir() else place.parent) / "config.json"
    settings = _json(file) if file.is_file() else {}
    tensors = Tensors(place)
    style = (
        "ldm" if any(n.startswith(("first_stage_model.", "model.diffusion_model.")) for n in tensors) else "diffusers"
    )
    return Source(part, style, tensors, settings if style == "diffusers" else {})


def entries_of(
    config: ml_collections.ConfigDict, part: str, style: str, prefix: str | None = None
) -> list[names.Entry]:
    """The part's table; `prefix`: where the text transformer stands in their names (None: as the style has it)."""
    if part == "text_encoder":
        usual = _LDM_TEXT if style == "ldm" else "text_model."
        return names.text_entries(config.text.num_layers, usual if prefix is None else prefix)
    section = config[part]
    mults = section.channel_mults
    changes = tuple(a != b for a, b in zip(mults, mults[1:]))
    if part == "vae":
        return names.vae_entries(len(mults), section.num_res_blocks, changes, style)
    return names.unet_entries(len(mults), section.num_res_blocks, section.prompt_levels, changes, style)


def text_prefix(source: Source) -> str | None:
    """Where the text transformer stands in the files' names: newer ones have it bare. None: as the style has it."""
    return "" if source.style == "diffusers" and "final_layer_norm.weight" in source.tensors else None


def entries_for(config: ml_collections.ConfigDict, source: Source) -> list[names.Entry]:
    """The table that fits the names in the files."""
    entries = entries_of(config, source.part, source.style, text_prefix(source))
    older = source.part == "vae" and source.style == "diffusers"
    return names.with_older_attention(entries, source.tensors.shapes) if older else entries


def conflicts(config: ml_collections.ConfigDict, source: Source) -> Iterator[str]:
    """Lines: a setting of the files that the config contradicts, and the mend; none where all agree."""
    for key, ours, field in _expected(config, source.part):
        theirs = source.settings.get(key)
        if theirs is None or key == "attention_head_dim" and source.settings.get("num_attention_heads") is not None:
            continue
        if theirs not in (ours if isinstance(ours, tuple) else (ours,)):
            yield f"{source.part}/config.json has {key}={theirs!r}, which is not what config.{field} makes; change it"
    if source.style == "ldm" and source.part == "unet" and "alphas_cumprod" in source.tensors:
        yield from _schedule_conflict(config, source.tensors["alphas_cumprod"])


def _expected(config: ml_collections.ConfigDict, part: str) -> tuple[tuple[str, Any, str], ...]:
    """(their key, the value or values that ours is equal to, our field)."""
    heads, text = config.unet.num_heads, config.text
    unet = (
        # Named for the size of a head, it is their number in these networks.
        ("attention_head_dim", (heads, [heads] * len(config.unet.channel_mults)), "unet.num_heads"),
        ("num_attention_heads", (heads, [heads] * len(config.unet.channel_mults)), "unet.num_heads"),
        ("act_fn", "silu", "unet"),
        ("norm_num_groups", 32, "unet.channels"),
        ("norm_eps", 1e-5, "unet"),
        ("flip_sin_to_cos", True, "unet"),
        ("freq_shift", 0, "unet"),
        ("transformer_layers_per_block", 1, "unet"),
        ("only_cross_attention", (False, [False] * len(config.unet.channel_mults)), "unet"),
        ("addition_embed_type", (), "unet"),
        ("class_embed_type", (), "unet"),
        ("resnet_time_scale_shift", "default", "unet"),
    )
    vae = (("act_fn", "silu", "vae"), ("norm_num_groups", 32, "vae.channels"), ("shift_factor", (), "vae"))
    text_encoder = (
        ("num_attention_heads", text.num_heads, "text.num_heads"),
        ("hidden_act", "quick_gelu", "text"),
        ("max_position_embeddings", text.max_tokens, "text.max_tokens"),
        ("layer_norm_eps", 1e-5, "text"),
        ("intermediate_size", 4 * text.width, "text.width"),
    )
    return {"vae": vae, "unet": unet, "text_encoder": text_encoder}[part]


def alphas_cumprod(config: ml_collections.ConfigDict) -> np.ndarray:
    """The config's noise table, float64 [T]."""
    process = config.diffusion
    return schedules.alphas_cumprod(process.schedule, process.num_timesteps, process.zero_terminal_snr)


def _schedule_conflict(config: ml_collections.ConfigDict, theirs: np.ndarray) -> Iterator[str]:
    ours = alphas_cumprod(config)
    if theirs.shape != ours.shape or np.abs(np.asarray(theirs, np.float64) - ours).max() > 1e-3:
        yield (
            "the file's noise table is not that of config.diffusion.schedule; Stable Diffusion's is scaled_linear with"
            " num_timesteps=1000 and zero_terminal_snr=False"
        )


def scheduler_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config's noise, in the fields of a diffusers scheduler."""
    process = config.diffusion
    return dict(
        beta_schedule={"cosine": "squaredcos_cap_v2"}.get(process.schedule, process.schedule),
        beta_start=1e-4 if process.schedule == "linear" else 0.00085,
        beta_end=2e-2 if process.schedule == "linear" else 0.012,
        num_train_timesteps=process.num_timesteps,
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[process.prediction],
        rescale_betas_zero_snr=process.zero_terminal_snr,
    )


def scheduler_conflicts(config: ml_collections.ConfigDict, source: str) -> Iterator[str]:
    """As `conflicts`, of a folder's `scheduler/scheduler_config.json`; what that leaves out is diffusers' default."""
    file = pathlib.Path(source or ".") / "scheduler" / "scheduler_config.json"
    if not source or not file.is_file():
        return
    given, ours = _json(file), scheduler_settings(config)
    theirs = _SCHEDULER_DEFAULTS | given
    said = lambda key: f"has {key}={theirs[key]!r}" if key in given else f"has no {key}, which means {theirs[key]!r}"
    schedule = ours["beta_schedule"]
    has_ends = schedule == theirs["beta_schedule"] and schedule != "squaredcos_cap_v2"  # a cosine does not read them
    for key, field in _SCHEDULER_FIELDS.items():
        if theirs[key] != ours[key]:
            yield f"scheduler_config.json {said(key)}, config.diffusion.{field} makes {ours[key]!r}; change it"
    for key in ("beta_start", "beta_end") if has_ends else ():
        if theirs[key] != ours[key]:
            yield f"scheduler_config.json {said(key)}, and {schedule} here has {ours[key]!r}; no schedule here fits"
    if theirs["trained_betas"] is not None:
        yield "scheduler_config.json has trained_betas, a noise table of its own; no schedule here fits"


def scaling_factor(source: Source) -> float:
    """1 / the standard deviation of the VAE's latents, as its settings say."""
    return float(source.settings.get("scaling_factor") or SCALING_FACTOR)


def tokenizer_of(source: str, given: str) -> str:
    """The folder or file with the tokenizer; '' where none is found."""
    if given:
        return given
    place = pathlib.Path(source or ".") / "tokenizer"
    return str(place) if source and place.is_dir() else ""
