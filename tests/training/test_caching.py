"""Training from kept latents is training from frames."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights
from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data.cache import store
from nuwaxl_jax.training import caching
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import loop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(toons_presets, tmp_path_factory):
    """(config that starts from a weight file and is cached, its networks, the file's bundle)."""
    folder = tmp_path_factory.mktemp("cache")
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    networks = networks_lib.build(config)
    vae_key, key = jax.random.split(jax.random.key(0))
    bundle = dict(
        vae=jax.device_get(jax.jit(networks.init_vae)(vae_key)),
        latent_shift=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        latent_scale=np.array([0.5, 0.6, 0.7, 0.8], np.float32),
        denoisers=(jax.device_get(jax.jit(networks.init_denoiser)(key)),),
    )
    file = folder / "start.safetensors"
    weights.save(file, bundle, config, {}, dtype="float32")
    config.train.init_from = str(file)
    config.train.stages = ("image_denoiser", "denoiser")
    config.data.cache = str(folder / "cache")
    config.train.denoiser.trainable = "unet"  # so that the text is kept too
    config.hierarchy.handover = "pixel"
    return config, networks, bundle


@pytest.fixture(scope="module")
def filled(start, tmp_path_factory):
    """The workdir and the counts of a cache of both stages."""
    workdir = str(tmp_path_factory.mktemp("run"))
    said = []
    made = caching.run(start[0], workdir, count=60, say=said.append)
    assert made == {"image_denoiser": 64, "denoiser": 64}
    assert any("64 examples encoded" in line for line in said)
    return workdir


def _both(config, workdir, stage):
    live = config.copy_and_resolve_references()
    live.data.cache = ""
    iterators = [caching.iterator(each, workdir, stage) for each in (live, config)]
    yield from zip(*iterators)


def test_batches_are_those_of_live_encoding(start, filled):
    config, networks, bundle = start
    frozen = {"vae": bundle["vae"]}
    encode = jax.jit(lambda video: latents.moments(networks, frozen, video))
    text = jax.jit(lambda tokens: networks.text_states(bundle["denoisers"][0]["text"], tokens))
    levels = set()
    for number, (live, kept) in enumerate(_both(config, filled, "denoiser")):
        if number == 8:
            break
        assert set(kept) == {"moments", "masked", "tokens", "text", "level", "episode", "start"}
        for name in ("tokens", "level", "episode", "start"):
            np.testing.assert_array_equal(kept[name], live[name], err_msg=name)
        video = networks_lib.to_float(jnp.asarray(live["frames"]))
        np.testing.assert_allclose(kept["moments"], encode(video), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(kept["text"], text(live["tokens"]), rtol=1e-5, atol=1e-5)
        local = live["level"] > 0
        for which, given in enumerate(([1, 0, 0, 0], [1, 0, 0, 1])):
            masked = encode(video * np.array(given, np.float32)[None, :, None, None, None])
            np.testing.assert_allclose(kept["masked"][local, which], masked[local], rtol=1e-5, atol=1e-5)
        assert not kept["masked"][~local].any()
        levels |= set(live["level"].tolist())
    assert len(levels) > 1


def test_images_are_encoded_as_clips_of_one_frame(start, filled):
    config, networks, bundle = start
    live, kept = next(_both(config, filled, "image_denoiser"))
    assert kept["moments"].shape == (4, 2, 16, 16, 8) and "text" not in kept  # the image stage trains its text encoder
    images = networks_lib.to_float(jnp.asarray(live["frames"])).reshape(8, 1, 16, 16, 3)
    moments = latents.moments(networks, {"vae": bundle["vae"]}, images)
    np.testing.assert_allclose(kept["moments"].reshape(8, 1, 16, 16, 8), moments, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_is_the_same_on_any_number_of_hosts(start, filled, count):
    config = start[0]
    folder = store.Folder.open(f"{config.data.cache}/denoiser", caching.key_of(config, filled, "denoiser"))
    examples = store.Examples(folder)

    def batches(index, of, skip=0):
        options = dict(process_index=index, process_count=of, cached=examples)
        iterator = pipeline.make_iterator(config, "train", "denoiser", seed=7, **options)
        if skip:
            iterator.set_state({**iterator.get_state(), "next_batch": skip})
        return [next(iterator) for _ in range(20 - skip)]  # into the second epoch

    alone = batches(0, 1)
    parts = [batches(i, count, skip=14) for i in range(count)]  # resumed there by another number of hosts
    for k in range(6):
        for name in alone[0]:
            together = np.concatenate([part[k][name] for part in parts])
            np.testing.assert_array_equal(together, alone[14 + k][name], err_msg=name)


def test_what_the_latents_follow_from_is_checked_by_name(start, filled, tmp_path):
    config, _, bundle = start

    def refused(match, **changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        with pytest.raises(store.CacheError, match=match):
            caching.iterator(changed, filled, "denoiser")

    refused("data.level_weights", **{"data.level_weights": (1.0, 1.0, 1.0)})
    refused("data.num_episodes .*; videos", **{"data.num_episodes": 9, "data.episode_frames": 100})
    refused("hierarchy.handover 'pixel' -> 'latent'", **{"hierarchy.handover": "latent"})
    refused("seed", seed=1)
    other = str(tmp_path / "other.safetensors")
    vae = jax.tree.map(lambda x: x * 1.001, bundle["vae"])
    weights.save(other, dict(bundle, vae=vae), config, {}, dtype="float32")
    refused("was made of something else: vae '", **{"train.init_from": other})
    text = jax.tree.map(lambda x: x * 1.001, bundle["denoisers"][0]["text"])
    weights.save(other, dict(bundle, denoisers=(dict(bundle["denoisers"][0], text=text),)), config, {}, dtype="float32")
    refused("was made of something else: text_encoder '", **{"train.init_from": other})
    refused("holds no cache; make it with --mode=data --cache", **{"data.cache": str(tmp_path)})
    same = config.copy_and_resolve_references()
    same.data.num_threads, same.data.prefetch, same.train.denoiser.num_steps = 2, 1, 99
    caching.iterator(same, filled, "denoiser").close()


@pytest.fixture
def key_of(toons_presets, monkeypatch):
    """The denoiser's key with fields changed; of a config that keeps the text's states too, and of no real weights."""
    monkeypatch.setattr(caching.lineage, "vae_of", lambda config, workdir: {"x": np.zeros(1)})

    def make(**changes):
        config = toons_presets.get_config("tiny")
        config.train.init_from, config.data.cache, config.train.denoiser.trainable = "any", "any", "unet"
        config.text.update(width=16, num_heads=4)
        config.update_from_flattened_dict(changes)
        return caching.key_of(config, "", "denoiser", pipeline.make_source(config, "train"), {"x": np.zeros(1)})

    return make


def test_heads_of_a_kept_text_are_in_the_key_and_old_keys_stay(key_of):
    assert key_of()["fields"] == ["latents", "text"]
    assert key_of()["text"] == {"tokenizer": "words", "vocab_size": 512, "max_tokens": 20}  # as in all caches there are
    assert key_of(**{"text.num_heads": 2}) != key_of()
    live = {"train.denoiser.trainable": ""}  # the text is encoded in the step
    assert key_of(**live, **{"text.num_heads": 2}) == key_of(**live)


def test_the_vocabulary_is_in_the_key_by_what_it_says(key_of, tmp_path):
    letters = [chr(i) for i in range(97, 123)]
    ids = {token: i for i, token in enumerate([*letters, *(x + "</w>" for x in letters), clip_bpe.BOS, clip_bpe.EOS])}

    def of(name, merges, ids=ids):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        return key_of(**{"text.tokenizer": "clip_bpe", "text.vocabulary": str(folder)})

    first = of("a", ["a t</w>", "c at</w>"])
    assert len(first["text"]["vocabulary"]) == 64
    assert of("b", ["a t</w>", "c at</w>"], dict(reversed(ids.items()))) == first  # elsewhere, in another order
    assert of("c", ["c at</w>", "a t</w>"]) != first
    assert of("d", ["a t</w>", "c at</w>"], {**ids, "a": ids["b"], "b": ids["a"]}) != first


def test_a_position_among_kept_examples_is_not_continued_among_frames(start, filled):
    config = start[0]
    live = config.copy_and_resolve_references()
    live.data.cache = ""
    iterators = [caching.iterator(each, filled, "denoiser") for each in (live, config)]
    for one, other in (iterators, iterators[::-1]):
        with pytest.raises(ValueError, match="cached_examples"):
            one.set_state(other.get_state())


def test_a_second_run_changes_nothing(start, filled):
    config = start[0]
    folder = f"{config.data.cache}/denoiser"
    before = {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)}
    said = []
    caching.run(config, filled, count=64, say=said.append)
    assert before == {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)}
    assert any("64 examples wanted" in line and "64 are there" in line for line in said)


def test_a_run_from_kept_latents_is_a_run_from_frames(start, filled, tmp_path):
    config = start[0].copy_and_resolve_references()
    config.train.stages = ("denoiser",)
    config.train.denoiser.update(num_steps=4, batch_size=8)
    config.diffusion.caption_dropout, config.diffusion.first_only_prob = 0.5, 0.3
    live = config.copy_and_resolve_references()
    live.data.cache = ""
    ema = []
    for name, each in (("kept", config), ("live", live)):
        loop.train(each, str(tmp_path / name))
        ema.append(checkpoint.restore_ema(str(tmp_path / name), "denoiser"))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ema[0], start[2]["denoisers"][0])
    assert max(jax.tree.leaves(moved["unet"])) > 1e-3 and max(jax.tree.leaves(moved["text"])) < 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *ema)


def test_the_command_killed_at_random_moments_goes_on(toons_presets, start, tmp_path):
    config = start[0]
    root = os.path.dirname(os.path.dirname(toons_presets.__file__))
    cache = tmp_path / "cache"
    command = [
        *(sys.executable, "-m", "nuwaxl_jax.main", "--mode=data", "--cache", "--items=640", f"--workdir={tmp_path}"),
        *(f"--config={toons_presets.__file__}:tiny", f"--config.data.cache={cache}"),
        *(f"--config.train.init_from={config.train.init_from}", "--config.train.stages=('denoiser',)"),
        *(f"--config.{name}={value}" for name, value in toons_presets.ONE_LEVEL.items()),
    ]
    rng, there = random.Random(1), set()
    for _ in range(10):
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # "640 examples wanted": imports and the key are behind it
        time.sleep(rng.uniform(0.0, 3.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert there <= set(os.listdir(cache / "denoiser"))  # nothing is lost
        there = {name for name in os.listdir(cache / "denoiser") if name.endswith(".array_record")}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.move(cache, tmp_path / "killed")
    assert subprocess.run(command, cwd=root, capture_output=True).returncode == 0
    for name in sorted(os.listdir(cache / "denoiser")):
        assert (cache / "denoiser" / name).read_bytes() == (tmp_path / "killed" / "denoiser" / name).read_bytes(), name
    assert len(os.listdir(cache / "denoiser")) == len(os.listdir(tmp_path / "killed" / "denoiser")) == 11
