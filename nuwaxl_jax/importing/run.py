"""--mode=import: public image weights into one weight file of ours, temporal layers and injections new.

Every image tensor is looked for, its shape compared, and what does not fit is listed by name before anything is
written. New layers are at their initialisation, the identity, so the video network is the image network on each frame.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Mapping

from flax import traverse_util
import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights
from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.importing import parts
from nuwaxl_jax.importing import trees
from nuwaxl_jax.importing.tensors import WeightsError

_SHOWN = 40  # names of a kind; beyond it a count


def run(
    config: ml_collections.ConfigDict, source: str, given: Mapping[str, str], out: str, dry_run: bool = False
) -> None:
    """Prints the report and writes `out`, by atomic rename.

    Args:
      config: validated; its networks are filled.
      source: pipeline folder or single-file checkpoint, '' if `given` has all.
      given: part (`parts.PARTS`, 'tokenizer') -> its own folder or file.
      out: the .safetensors file.
      dry_run: report alone.

    Raises:
      WeightsError, VocabularyError: files that do not fit, after the report; nothing is written.
    """
    found = parts.find(source, given)
    tokenizer = parts.tokenizer_of(source, given.get("tokenizer", ""))
    networks = networks_lib.build(config)
    vae_shapes = jax.eval_shape(networks.init_vae, jax.random.key(0))
    denoiser_shapes = jax.eval_shape(networks.init_denoiser, jax.random.key(0))
    shapes = dict(vae=vae_shapes, unet=denoiser_shapes["unet"], text_encoder=denoiser_shapes["text"])
    problems = list(parts.scheduler_conflicts(config, source))
    fitting: dict[str, Any] = {}
    for part in parts.PARTS:
        if part not in found:
            problems.append(f"{part}: not among the files; give --{part}, or a pipeline folder that has it")
            continue
        entries = parts.entries_for(config, found[part])
        report = trees.compare(entries, found[part].tensors.shapes, shapes[part], found[part].ignored())
        _show(part, found[part], report, shapes[part], entries)
        problems += parts.conflicts(config, found[part])
        if report.fits:
            fitting[part] = entries
        else:
            problems.append(f"{part}: {len(report.missing)} tensors are missing, {len(report.wrong)} misshapen")
    problems += _tokenizer_problem(config, tokenizer)
    if problems:
        for problem in problems[:-1]:
            print(f"  {problem}")
        raise WeightsError(f"import: {problems[-1]} ({len(problems)} problems in all; nothing was written)")
    if dry_run:
        print("everything fits; nothing was written (--dry_run)")
        return
    _write(config, networks, found, fitting, shapes, tokenizer, out)


def _tokenizer_problem(config: ml_collections.ConfigDict, tokenizer: str) -> list[str]:
    if config.text.tokenizer != "clip_bpe":
        return []
    if not tokenizer:
        return ["tokenizer: not among the files; give --tokenizer, a folder with vocab.json and merges.txt"]
    known = clip_bpe.read(tokenizer)
    used = max(known.ids.values()) + 1
    print(f"tokenizer     {used} tokens, {len(known.merges)} merges, from {tokenizer}")
    return [] if used <= config.text.vocab_size else [f"text.vocab_size: is below the tokenizer's {used} tokens"]


def _show(part: str, source: parts.Source, report: trees.Report, shapes: Any, entries: Any) -> None:
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    taken = sum(sizes[entry.ours] for entry in entries)
    new = [name for name in sizes if name not in {entry.ours for entry in entries}]
    kinds = sorted(set(source.tensors.dtypes.values()))
    print(
        f"{part:13} {report.taken} tensors ({', '.join(kinds)}, {source.style}) from {source.tensors.path}: "
        f"{taken:,} parameters; new here: {len(new)} arrays, {sum(sizes[n] for n in new):,} parameters"
    )
    for kind, found in (("missing", report.missing), ("misshapen", report.wrong), ("unexpected", report.unexpected)):
        for name in found[:_SHOWN]:
            print(f"  {kind}: {name}")
        if len(found) > _SHOWN:
            print(f"  {kind}: {len(found) - _SHOWN} more")


def _write(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    found: Mapping[str, parts.Source],
    entries: Mapping[str, Any],
    shapes: Mapping[str, Any],
    tokenizer: str,
    out: str,
) -> None:
    key = jax.random.key(config.seed)
    inits = {
        "vae": networks.init_vae,
        "unet": lambda key: networks.init_denoiser(key)["unet"],
        "text_encoder": lambda key: networks.init_denoiser(key)["text"],
    }
    filled = {}
    for i, part in enumerate(parts.PARTS):
        names = {entry.ours for entry in entries[part]}
        new = networks_lib.new_arrays(inits[part], jax.random.fold_in(key, i), names)
        new = traverse_util.unflatten_dict(new, sep="/")
        filled[part] = trees.fill(entries[part], found[part].tensors, new)
    factor = parts.scaling_factor(found["vae"])
    channels = config.vae.latent_channels
    bundle = {
        "vae": filled["vae"],
        "latent_shift": np.zeros(channels, np.float32),
        "latent_scale": np.full(channels, factor, np.float32),
        "denoisers": ({"unet": filled["unet"], "text": filled["text_encoder"]},),
    }
    half = all(set(source.tensors.dtypes.values()) <= {"F16", "I64"} for source in found.values())
    written = config.copy_and_resolve_references()
    with written.unlocked():
        written.text.vocabulary = tokenizer
    card = {
        "name": f"{config.name}-imported",
        "imported": {part: source.tensors.digest() for part, source in found.items()},
        "trained": "image layers by others, as imported; temporal layers and injections are new (the identity)",
    }
    if parts.text_prefix(found["text_encoder"]) is not None:
        card["text_prefix"] = parts.text_prefix(found["text_encoder"])
    weights.save(out, bundle, written, card, dtype="float16" if half else "float32")
    print(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB, {'float16' if half else 'float32'}", file=sys.stderr)
