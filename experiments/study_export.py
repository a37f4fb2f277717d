"""Writes what the arms of a study start from: a VAE, or with it the denoiser's image network, out of a run.

python experiments/study_export.py SOURCE vae|image|image_vae FILE [VAE]
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

from flax import traverse_util

ROOT = pathlib.Path(__file__).resolve().parents[1]


def call(source: str | pathlib.Path, what: str, file: pathlib.Path, vae: str | pathlib.Path = "") -> None:
    """`write` in a process of its own: it holds no memory while arms train."""
    script = [sys.executable, str(pathlib.Path(__file__).resolve()), str(source), what, str(file), str(vae)]
    subprocess.run(script, cwd=ROOT, check=True)


def write(source: str, what: str, file: str, beside: str) -> None:
    """Writes a VAE by itself, or (`what` is 'image') the denoiser's image network of a run beside the VAE `beside`."""
    from nuwaxl_jax import weights
    from nuwaxl_jax.training import checkpoint
    from nuwaxl_jax.training import export
    from nuwaxl_jax.training import lineage
    from nuwaxl_jax.training import vae_task

    card = {"made": "experiments/study.py", "of": what}
    if what == "image":
        bundle, _, _ = weights.load(beside)
        config = export.read_config(source)
        image = checkpoint.restore_ema(source, "image_denoiser")
        image["unet"].pop("level_embedding", None)  # images leave it at 0, and arms differ in their number of levels
        bundle["denoisers"] = (image,)
    elif source == "shipped":
        bundle, config, _ = weights.load(weights.find("shipped"))
        bundle["denoisers"] = ()
    else:
        config = export.read_config(source)
        vae = traverse_util.flatten_dict(lineage.vae_of(config, source), sep="/")
        if "vae" not in config.train.stages:  # images leave temporal layers as they were; arms differ in how they start
            vae = {path: leaf for path, leaf in vae.items() if not re.search(vae_task.VAETask.new_layers, path)}
        vae = traverse_util.unflatten_dict(vae, sep="/")
        bundle = {"vae": vae, **lineage.latent_stats(config, source), "denoisers": ()}
    weights.save(file, bundle, config, card, dtype="float32")


if __name__ == "__main__":
    write(*sys.argv[1:])
