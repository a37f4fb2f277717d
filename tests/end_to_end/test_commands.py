"""The commands as users run them: train, sample, eval and export of the tiny preset, and their mistakes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from nuwaxl_jax import video_io
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.training import export

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESET = f"--config={ROOT}/configs/toons.py:tiny"


def _command(*arguments, cwd=ROOT):
    env = dict(os.environ, PYTHONWARNINGS="ignore")
    return subprocess.run(
        [sys.executable, "-m", "nuwaxl_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=900,
    )


@pytest.fixture(scope="module")
def config(toons_presets):
    """The flags of the tiny preset with networks of one resolution."""
    return (PRESET, *(f"--config.{name}={value}" for name, value in toons_presets.ONE_LEVEL.items()))


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    done = _command("--mode=train", *config, f"--workdir={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    story = path / "story.txt"
    story.write_text("a small red square jumps in the desert\na big blue star stands in the forest\n")
    return path


def _sample(workdir, out, *extra):
    done = _command("--mode=sample", f"--workdir={workdir}", f"--story={workdir}/story.txt", *extra)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_story_in_video_storyboard_and_metadata_out(workdir):
    done = _sample(workdir, workdir)
    frames = np.concatenate(list(video_io.VideoReader(workdir / "story.mp4").chunks()))
    assert frames.shape == (28, 16, 16, 3)  # (4 - 1) ** 3 + 1
    meta = json.loads((workdir / "story.json").read_text())
    assert meta["frames"] == 28 and meta["seed"] == 0
    assert [level["segments"] for level in meta["timings"]["levels"]] == [1, 3, 9]
    assert meta["config"]["hierarchy"]["segment_length"] == 4
    assert (workdir / "story.png").read_bytes().startswith(b"\x89PNG")
    assert "about" in done.stderr and "level 3 of 3" in done.stderr
    assert not list(workdir.glob("*.part")) and not list(workdir.glob(".*mp4*"))


def test_export_and_sampling_from_the_file_give_the_same_video(workdir, tmp_path):
    weights = tmp_path / "tiny.safetensors"
    done = _command("--mode=export", f"--workdir={workdir}", f"--weights={weights}")
    assert done.returncode == 0, done.stderr[-2000:]
    done = _command(
        "--mode=sample",
        f"--workdir={tmp_path}",
        f"--weights={weights}",
        f"--story={workdir}/story.txt",
        "--frames=5",
        "--config.seed=3",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    meta = json.loads((tmp_path / "story.json").read_text())
    assert meta["frames"] == 5 and meta["seed"] == 3 and meta["weights"]["file"] == "tiny.safetensors"
    assert len(meta["timings"]["levels"]) == 2  # 5 frames need two levels of the tree


@pytest.mark.slow
def test_redo_makes_another_video(workdir, tmp_path):
    command = ("--mode=sample", f"--workdir={tmp_path}", f"--story={workdir}/story.txt")
    command = (*command, f"--weights={tmp_path}/w.safetensors", "--config.sampler.temperature=(1.0, 1.0, 0.0)")
    assert _command("--mode=export", f"--workdir={workdir}", command[3]).returncode == 0
    assert _command(*command).returncode == 0
    first = (tmp_path / "story.mp4").read_bytes()
    refused = _command(*command, "--redo=2.0")
    assert refused.returncode == 2 and "sampler.temperature is 0 at level 2" in refused.stderr
    [latents] = (tmp_path / "story.latents").glob("*/latents.npy")
    before = np.load(latents)
    done = _command(*command, "--redo=1.2")
    assert done.returncode == 0 and "--redo=1.2: 4 segments are made again" in done.stderr, done.stderr[-2000:]
    changed = (np.load(latents) != before).any(axis=(0, 2, 3, 4))
    assert np.flatnonzero(changed).tolist() == list(range(19, 27)) and (tmp_path / "story.mp4").read_bytes() != first


def test_sliding_window_by_flag_and_another_handover_than_trained_is_refused(workdir):
    command = ("--mode=sample", f"--workdir={workdir}", f"--story={workdir}/story.txt", "--frames=10")
    done = _command(*command, "--config.hierarchy.strategy=autoregressive")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((workdir / "story.json").read_text())["frames"] == 10
    refused = _command(*command, "--config.hierarchy.handover=pixel")
    assert refused.returncode == 2 and "trained with 'latent', not 'pixel'" in refused.stderr


@pytest.mark.slow
def test_evaluation_writes_its_record_and_pictures(workdir):
    evaluate = ("--mode=eval", f"--workdir={workdir}", "--stories=1")
    done = _command(*evaluate)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((workdir / "eval" / "eval.json").read_text())
    assert record["protocol"]["stories"] == 1 and record["protocol"]["frames"] == 28
    assert list(record["denoising"]["levels"]) == ["0", "1", "2"]
    ways = record["stories"]
    assert list(ways) == ["autoregressive", "ground_truth", "nuwa_xl", "vae_ceiling"]  # JSON sorts them
    assert ways["vae_ceiling"]["psnr"] < 30 and ways["nuwa_xl"]["cost"]["serial_denoiser_calls"] > 0
    for name in ("curves.png", "story0.png"):
        assert (workdir / "eval" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_new_layers_alone_learn_from_given_weights(config, workdir, tmp_path):
    weights, run = tmp_path / "start.safetensors", tmp_path / "run"
    assert _command("--mode=export", f"--workdir={workdir}", f"--weights={weights}").returncode == 0
    done = _command(
        "--mode=train",
        *config,
        f"--workdir={run}",
        f"--config.train.init_from={weights}",
        "--config.train.stages=('denoiser',)",
        "--config.train.denoiser.trainable=new",
        "--config.train.denoiser.num_steps=2",
        "--config.train.denoiser.ema_decay=0.0",
    )
    assert done.returncode == 0 and f"starts from {weights}" in done.stdout, done.stderr[-2000:]
    before, after = weights_lib.load(weights)[0], export.bundle_from_workdir(str(run))[0]
    same = lambda one, other: jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)
    assert jax.tree.all(same(before["vae"], after["vae"]))
    np.testing.assert_array_equal(before["latent_scale"], after["latent_scale"])
    kept = jax.tree_util.tree_leaves_with_path(same(before["denoisers"][0], after["denoisers"][0]))
    new = {jax.tree_util.keystr(path) for path, is_same in kept if not is_same}
    assert new and all(re.search("temporal|injection|cond_down|level_embedding", name) for name in new)


@pytest.mark.slow
def test_a_second_train_command_skips_what_is_finished(config, workdir):
    done = _command("--mode=train", *config, f"--workdir={workdir}")
    assert done.returncode == 0 and done.stdout.count("skipped") + done.stderr.count("skipped") == 4


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--mode=train", PRESET, "--config.unet.width=3"], "config.unet.width"),
        (["--mode=train", PRESET, "--config.unet.num_heads=3"], "config.unet.num_heads"),
        (["--mode=train", f"{PRESET[:-4]}huge"], "huge"),
        (["--mode=train", "--config=configs/none.py"], "none.py"),
        (["--mode=sample"], "--story"),
        (["--mode=import"], "--weights"),
        (["--mode=import", "--weights=w.safetensors"], "--source"),
        (["--mode=import", "--source=none", "--dry_run"], "none: does not exist"),
        (["--mode=export", "--layout=diffusers"], "--out"),
        (["--mode=sample", "--story=none.txt"], "none.txt"),
        (["--mode=data"], "one of --check, --caption"),
        (["--mode=data", "--cache"], "config.data.cache is empty"),
        (["--mode=data", "--cache", "--config.data.cache=CACHE"], "--items is missing"),
        (["--mode=data", "--cut", "--config.data.path=VIDEOS"], "--out must name the .jsonl"),
        (["--mode=train", "--config.unet.widht=3"], "config.unet.widht: unknown key"),
        (["--mode=train", "--config.unet.channels=wide"], "wide"),
        (["--mode=dance"], "mode"),
        (["--mode=sample", "--story=README.md", "--weights=none.safetensors"], "none.safetensors"),
        (["--mode=train", PRESET, "stray"], "stray"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, arguments, named):
    target = tmp_path / "new"
    done = _command(*arguments, f"--workdir={target}")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert len(lines) == 1 and named in lines[0], done.stderr[-2000:]
    assert not target.exists()


def test_empty_story_is_refused_and_leaves_nothing(workdir, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    done = _command("--mode=sample", f"--workdir={workdir}", f"--story={empty}")
    assert done.returncode == 2 and "empty.txt" in done.stderr
    assert not (workdir / "empty.mp4").exists()
