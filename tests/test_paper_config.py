"""configs/nuwaxl.py: the paper-sized networks by shape alone, counted against the published image networks."""

import collections
import importlib.util
import pathlib
import re

from flax import traverse_util
import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.cost import parameters
from nuwaxl_jax.hierarchy import plan
from nuwaxl_jax.importing import parts

# Parameters of Stable Diffusion v1's AutoencoderKL and UNet2DConditionModel and of CLIP ViT-L/14's text transformer.
PUBLISHED = {"vae": 83_653_863, "unet": 859_520_964, "text_encoder": 123_060_480}


def _presets():
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / "nuwaxl.py"
    spec = importlib.util.spec_from_file_location("nuwaxl_presets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["paper128", "paper256"])
def built(request):
    config = config_lib.validate(_presets().get_config(request.param))
    networks = networks_lib.build(config, "bfloat16")
    key = jax.random.key(0)
    denoiser = jax.eval_shape(networks.init_denoiser, key)
    return (
        config,
        networks,
        dict(vae=jax.eval_shape(networks.init_vae, key), unet=denoiser["unet"], text_encoder=denoiser["text"]),
    )


def test_image_parts_are_the_published_ones_and_the_rest_is_new(built):
    config, _, shapes = built
    for part, published in PUBLISHED.items():
        leaves = traverse_util.flatten_dict(shapes[part], sep="/")
        sizes = {name: int(np.prod(leaf.shape)) for name, leaf in leaves.items()}
        image = {entry.ours for entry in parts.entries_of(config, part, "diffusers")}
        assert image <= set(sizes) and sum(sizes[name] for name in image) == published
        new = collections.Counter()
        for name in set(sizes) - image:
            [kind] = re.findall(r"temporal|injection|cond_down|transformer", name)[:1]
            new[kind] += sizes[name]
        wanted = {"vae": {"temporal"}, "text_encoder": set()}
        # At level 4 public networks have no transformer; ours there is self-attention, the identity when new.
        assert set(new) == wanted.get(part, {"temporal", "injection", "cond_down", "transformer"}), part


def test_the_printed_table_says_the_same(built):
    config, _, shapes = built
    rows = {row["part"]: row for row in parameters.table(config)}
    for part, name in (("vae", "T-KLVAE"), ("unet", "MTD U-Net"), ("text_encoder", "text encoder")):
        whole = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes[part]))
        assert (rows[name]["image"], rows[name]["new"]) == (PUBLISHED[part], whole - PUBLISHED[part])
        assert rows[name]["networks"] == (1 if part == "vae" else 3)
        assert f"{PUBLISHED[part]:,}" in parameters.text(list(rows.values()))


def test_frames_of_the_tree_and_shapes_of_a_call(built):
    config, networks, shapes = built
    assert plan.tree_frames(config.hierarchy.segment_length, config.hierarchy.depth) == 3376
    side = config.data.frame_size // 8
    assert networks.latent_shape == (side, side, 4)
    x = jax.ShapeDtypeStruct((1, 16, side, side, 4), np.float32)
    mask = jax.ShapeDtypeStruct((1, 16, side, side, 1), np.float32)
    one = jax.ShapeDtypeStruct((1,), np.int32)
    tokens = jax.ShapeDtypeStruct((1, 16, 77), np.int32)
    text = jax.eval_shape(networks.text_states, shapes["text_encoder"], tokens)
    assert text.shape == (1, 16, 77, 768)
    params = {"unet": shapes["unet"], "text": shapes["text_encoder"]}
    out = jax.eval_shape(networks.denoise, params, x, one, text, x, mask, one)
    assert out.shape == x.shape and out.dtype == np.float32
    video = jax.eval_shape(networks.decode, shapes["vae"], x)
    assert video.shape == (1, 16, config.data.frame_size, config.data.frame_size, 3)


def test_an_unknown_preset_is_one_line():
    with pytest.raises(config_lib.ConfigError, match="no preset 'paper512'; choose one of paper128, paper256"):
        _presets().get_config("paper512")
