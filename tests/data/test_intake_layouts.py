"""Every layout goes through the check and into batches unchanged: the same frames and captions come out at the end."""

import contextlib
import io
import json

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import doctor
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import videos

EPISODES, LENGTH = 3, 24


def content(episode):
    """[LENGTH, 32, 32, 3]: frame i is of level 10 i, with a bright corner that tells the episode."""
    frames = np.empty((LENGTH, 32, 32, 3), np.uint8)
    frames[:] = (10 * np.arange(LENGTH, dtype=np.uint8))[:, None, None, None]
    frames[:, :8, 8 * episode : 8 * episode + 8] = 255
    return frames


def clips(step):
    """globalIDs that cover each episode, `step` frames a clip."""
    return [f"s_01_e_{e + 1:02}_shot_{f:06}_{f + step - 1:06}" for e in range(EPISODES) for f in range(0, LENGTH, step)]


def annotate(folder, names):
    entries = [dict(globalID=name, description=f"clip {name[-13:-7]}") for name in names]
    (folder / "flintstones_annotations_v1-0.json").write_text(json.dumps(entries))


def make_craft(folder):
    annotate(folder, clips(6))
    (folder / "video_frames").mkdir()
    for name in clips(6):
        first, last = int(name[-13:-7]), int(name[-6:])
        np.save(folder / "video_frames" / f"{name}.npy", content(int(name[7:9]) - 1)[first : last + 1])
    return folder


def make_episodes(folder):
    annotate(folder, clips(6))
    for e in range(EPISODES):
        video_io.write_mp4(folder / f"s01e{e + 1:02}.mp4", content(e), 25, gop=8)
    return folder


def make_arldm(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "story.h5", "w") as file:
        for e, group in enumerate(("train", "val", "test")):
            for k in range(5):
                frames = content(e)[[6 * k + i for i in range(6 if k < 4 else 0)] or range(18, 24)]
                buffer = io.BytesIO()
                Image.fromarray(np.concatenate(frames)).save(buffer, "PNG")  # grey: red and blue are equal
                data = file.create_dataset(f"{group}/image{k}", (1,), dtype=h5py.vlen_dtype(np.dtype("uint8")))
                data[0] = np.frombuffer(buffer.getvalue(), np.uint8)
            text = "|".join(f"clip {6 * min(k, 3):06}" for k in range(5))
            file.create_dataset(f"{group}/text", data=[text], dtype=h5py.string_dtype(encoding="utf-8"))
    return folder / "story.h5"


def make_pictures(folder):
    rows = []
    for e in range(EPISODES):
        for i, frame in enumerate(content(e)):
            name = f"s_01_e_{e + 1:02}_shot_{100 * i:06}_{100 * i + 74:06}.png"
            Image.fromarray(frame).save(folder / name)
            rows.append(dict(id=len(rows), image=name, text=f"clip {i // 6 * 6:06}"))
    (folder / "data.json").write_text(json.dumps(rows[::-1]))
    return folder / "data.json"


def make_spans(folder):
    rows = []
    for e in range(EPISODES):
        padded = np.concatenate([np.full((7, 32, 32, 3), 99, np.uint8), content(e)])
        video_io.write_mp4(folder / f"{e}.mp4", padded, 25, gop=8)
        row = dict(path=f"{e}.mp4", first_frame=7, last_frame=6 + LENGTH)
        rows += [row | dict(frame=7 + f, last=12 + f, text=f"clip {f:06}") for f in range(0, LENGTH, 6)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


MAKERS = dict(
    flintstones=make_craft,
    flintstones_hd=make_episodes,
    arldm=make_arldm,
    pictures=make_pictures,
    manifest=make_spans,
)


@pytest.mark.parametrize("layout", MAKERS)
def test_check_source_and_batches(tmp_path, layout):
    place = MAKERS[layout](tmp_path)
    config = config_lib.default()
    config.data.update(source="folder", path=str(place), frame_size=16, num_workers=0)
    config.hierarchy.update(segment_length=3, depth=3)
    config.train.denoiser.update(batch_size=4, clip_length=3)
    said = []
    report = doctor.check(config, say=said.append)
    count = 30 if layout == "arldm" else LENGTH
    assert report["layout"] == layout and not report["left_out"]
    assert report["funnel"]["found"] == report["funnel"]["kept"] == EPISODES
    assert report["frames"] == EPISODES * count
    source = videos.VideoSource(place, split="train", frame_size=16)
    for i in range(len(source)):
        index = np.arange(LENGTH)
        frames = source.frames(i, index)
        np.testing.assert_allclose(frames[:, -4:, -4:].mean((1, 2, 3)), 10 * index, atol=3)
        assert source.captions(i, index) == [f"clip {k // 6 * 6:06}" for k in range(LENGTH)]
    with contextlib.closing(pipeline.make_iterator(config, "train", "denoiser", seed=0)) as iterator:
        batch = next(iterator)
    strides = np.array([4, 2, 1])[batch["level"]]
    wanted = batch["start"][:, None] + strides[:, None] * np.arange(3)  # [B, 3]
    shown = batch["frames"][:, :, -4:, -4:].astype(float).mean((2, 3, 4)) / 10
    if layout == "arldm":
        wanted = np.where(wanted < 24, wanted, wanted - 6)  # its fifth picture repeats the fourth
    np.testing.assert_array_equal(np.round(shown), wanted)
