"""A whole evaluation in process: its record, going on with what is kept, and which held-out videos are told."""

from concurrent import futures
import json
import shutil

import jax
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import survey
from nuwaxl_jax.evaluation import comparison
from nuwaxl_jax.evaluation import denoising
from nuwaxl_jax.evaluation import held_out
from nuwaxl_jax.evaluation import ledger as ledger_lib
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import run as run_lib
from nuwaxl_jax.evaluation import stories
from nuwaxl_jax.evaluation.features import networks as feature_networks

WAYS = ("ground_truth", "vae_ceiling", "nuwa_xl", "autoregressive")
FRAMES = 21  # of the 26 of a full tree: two blocks of 10


def _stills(frames):
    return frames.mean((1, 2)).astype(np.float32)


def _clips(clips):
    colours = clips.mean((2, 3))  # [n, T, 3]
    return np.concatenate([colours.mean(1), np.abs(np.diff(colours, axis=1)).mean(1)], axis=-1).astype(np.float32)


def _measures():
    clips = feature_networks.Network("clips", "c" * 64, True, "none", 6, _clips)
    stills = feature_networks.Network("stills", "s" * 64, True, "none", 3, _stills, fid=True)
    return measures_lib.Measures(clips, stills)


@pytest.fixture(scope="module")
def config(toons_presets):
    """Of two levels, which compile sooner than three."""
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    config.hierarchy.update(segment_length=6, depth=2)
    config.sampler.update(steps=(2, 2), guidance=(2.0, 1.0), temperature=(1.0, 1.0))
    return config


@pytest.fixture(scope="module")
def bundle(config):
    """Of random numbers."""
    networks, draw = networks_lib.build(config), np.random.default_rng(0)
    vae, denoiser = (
        jax.tree.map(lambda x: draw.normal(0, 0.1, x.shape).astype(np.float32), jax.eval_shape(init, jax.random.key(0)))
        for init in (networks.init_vae, networks.init_denoiser)
    )
    scale = dict(latent_shift=np.zeros(4, np.float32), latent_scale=np.ones(4, np.float32))
    return dict(scale, vae=vae, denoisers=(denoiser,))


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    """On one device, whose programs compile sooner; the denoising error is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda one=jax.devices()[:1]: one)
        patch.setattr(denoising, "of_level", lambda config, *_, **__: [0.5] * len(denoising.timesteps(config)))
        yield


def _run(config, bundle, place, card="w", real_scores="", **scope):
    scope = run_lib.Scope(**dict(told=2, frames=FRAMES, block=10, ways=WAYS) | scope)
    card, measures = {"sha256": card}, _measures()
    return run_lib.run(config, bundle, card, str(place), scope=scope, measures=measures, real_scores=str(real_scores))


def _told(capsys):
    """The lines of videos that were made since the last call, 'way, story i'."""
    return [line.split(" of ")[0] for line in capsys.readouterr().err.splitlines() if ", story " in line]


@pytest.fixture(scope="module")
def evaluated(config, bundle, tmp_path_factory):
    """(folder, record) of an evaluation of two stories."""
    place = tmp_path_factory.mktemp("evaluated")
    return place, _run(config, bundle, place)


def test_the_record_holds_every_way_by_every_metric(config, evaluated):
    place, record = evaluated
    assert json.loads((place / "eval" / "eval.json").read_text()) == json.loads(json.dumps(record))
    assert list(record["metrics"]) == list(record["stories"]) == list(WAYS)
    names = {"b_fvd_10", "b_fvd_10_pooled", "fvd_10", "fvd_spread_10", "avg_fid"}
    of_one = {way: {n for n in record["metrics"][way] if n not in names} for way in WAYS}  # found of single videos
    assert {"story_scene", "story_border_ratio"} <= of_one["ground_truth"] == set(record["metrics"]["ground_truth"])
    assert of_one["vae_ceiling"] - of_one["nuwa_xl"] == {"psnr", "ssim"} and "story_num_frames" not in of_one["nuwa_xl"]
    for way in WAYS[1:]:
        assert names < set(record["metrics"][way])
        for name, metric in record["metrics"][way].items():
            assert metric["subject"]["way"] == way and metric["protocol"]["real"]["sha256"]
            assert metric["subject"]["weights"]["sha256"] == "w" and metric["subject"]["text"]["per_frame"] is True
            if name in names:
                assert metric["value"] > 0
                floor = {"way": "other_real", "videos": 2, "value": record["others"][name]["value"]}
                assert metric["floor"] == floor
        summary = record["stories"][way]["summary"]["mean"]
        assert record["metrics"][way]["story_scene"]["value"] == pytest.approx(summary["scene"], abs=1e-6)
    assert record["metrics"]["vae_ceiling"]["psnr"]["value"] == pytest.approx(
        record["stories"]["vae_ceiling"]["psnr"], abs=1e-4
    )
    assert set(record["others"]) == names and set(record["code"]) >= {"version"}
    assert record["others"]["avg_fid"]["protocol"]["captions"] == "others"
    assert record["protocol"]["frames"] == FRAMES and record["protocol"]["others"] == 2
    assert record["stories"]["vae_ceiling"]["psnr"] < 30 and "cost" not in record["stories"]["vae_ceiling"]
    assert record["stories"]["nuwa_xl"]["cost"]["serial_denoiser_calls"] > 0
    assert list(record["denoising"]["levels"]) == ["0", "1"]
    for name in ("story0.png", "curves.png"):
        assert (place / "eval" / name).read_bytes().startswith(b"\x89PNG")


def test_ways_of_one_evaluation_stand_in_one_table(evaluated, capsys):
    comparison.run([str(evaluated[0])])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == sorted(WAYS)  # JSON sorts them
    assert {"b_fvd_10", "avg_fid", "story_scene", "psnr"} <= {row.split()[0] for row in rows}


def _without_times(record):
    return {name: record[name] for name in ("metrics", "others", "stories", "denoising", "protocol")}


def test_a_second_call_makes_no_video(config, bundle, evaluated, monkeypatch):
    def fail(*_):
        raise AssertionError("a video is made again")

    monkeypatch.setattr(stories, "_tell_group", fail)
    monkeypatch.setattr(measures_lib.Measures, "read", fail)
    monkeypatch.setattr(denoising, "of_level", fail)
    place, record = evaluated
    assert _without_times(_run(config, bundle, place)) == _without_times(record)


def test_another_sampler_or_length_makes_other_videos_and_no_error_anew(config, bundle, evaluated, monkeypatch):
    place, record = evaluated
    monkeypatch.setattr(denoising, "of_level", lambda *_, **__: pytest.fail("an error is measured again"))
    other = config.copy_and_resolve_references()
    other.sampler.guidance = (1.0, 1.0)
    again = _run(other, bundle, place, ways=WAYS[:1], frames=FRAMES - 5)
    assert again["denoising"] == record["denoising"] and again["protocol"] != record["protocol"]
    monkeypatch.setattr(denoising, "of_level", lambda *_, **__: [0.25] * len(denoising.timesteps(config)))
    assert _run(config, bundle, place, ways=WAYS[:1], card="others")["denoising"] != record["denoising"]


def test_a_network_that_is_asked_otherwise_makes_its_videos_anew(config, bundle, evaluated, tmp_path, capsys):
    shutil.copytree(evaluated[0], tmp_path, dirs_exist_ok=True)
    other = config.copy_and_resolve_references()
    other.text.per_frame = False
    capsys.readouterr()
    record = _run(other, bundle, tmp_path, ways=("ground_truth", "nuwa_xl"))
    assert _told(capsys) == ["nuwa_xl, story 1", "nuwa_xl, story 2"]
    assert record["metrics"]["nuwa_xl"]["b_fvd_10"]["subject"]["text"]["per_frame"] is False


def test_other_numbers_under_one_card_are_told_anew(config, bundle, evaluated, tmp_path, capsys):
    shutil.copytree(evaluated[0], tmp_path, dirs_exist_ok=True)
    other = bundle | {"latent_shift": bundle["latent_shift"] + 1}
    capsys.readouterr()
    _run(config, other, tmp_path, ways=("ground_truth", "vae_ceiling"))
    assert _told(capsys) == ["vae_ceiling, story 1", "vae_ceiling, story 2"]


def test_what_is_lost_of_one_way_is_made_again_to_the_same_numbers(config, bundle, evaluated, capsys):
    place, record = evaluated
    lost = sorted(place.glob("eval/scores/*/nuwa_xl_0001.*"))
    assert [path.suffix for path in lost] == [".json", ".npz"]
    for path in lost:
        path.unlink()
    again = _run(config, bundle, place)
    assert _told(capsys) == ["nuwa_xl, story 1", "nuwa_xl, story 2"]  # told together, by one noise
    assert again["metrics"] == record["metrics"] and again["others"] == record["others"]
    assert all(path.exists() for path in lost)
    for way in WAYS:
        assert again["stories"][way]["stories"] == record["stories"][way]["stories"]


def test_other_weights_are_another_evaluation_of_the_same_real_videos(config, bundle, evaluated, tmp_path, capsys):
    place, record = evaluated
    before = len(list(place.glob("eval/scores/*")))
    capsys.readouterr()
    again = _run(config, bundle, place, card="other", ways=WAYS[:2])
    assert len(list(place.glob("eval/scores/*"))) == before + 2  # its videos, and its errors
    assert _told(capsys) == ["vae_ceiling, story 1", "vae_ceiling, story 2"]
    apart = _run(config, bundle, tmp_path, card="other", ways=WAYS[:2], real_scores=place / "eval" / "scores")
    assert _told(capsys) == ["vae_ceiling, story 1", "vae_ceiling, story 2"]
    assert _without_times(again) == _without_times(apart) and again["others"] == record["others"]
    for name, metric in again["metrics"]["vae_ceiling"].items():
        theirs = record["metrics"]["vae_ceiling"][name]
        assert metric["value"] == theirs["value"] and metric["subject"]["weights"]["sha256"] == "other"
        comparison.check(name, metric, theirs)


def test_only_the_group_of_a_lost_story_is_made_again(config, bundle, tmp_path, capsys):
    tell = lambda: _run(config, bundle, tmp_path, told=3, others=0, ways=WAYS[:2])
    record = tell()
    assert record["others"] == {}
    for path in tmp_path.glob("eval/scores/*/*_0002.*"):
        path.unlink()
    capsys.readouterr()
    assert _without_times(tell()) == _without_times(record)
    assert _told(capsys) == ["ground_truth, story 3", "vae_ceiling, story 3"]


def test_a_vae_alone_is_evaluated_without_generation(config, bundle, evaluated, tmp_path):
    alone, real = bundle | {"denoisers": ()}, evaluated[0] / "eval" / "scores"
    with pytest.raises(ValueError, match="--weights: holds a VAE alone; use --ways=ground_truth,vae_ceiling"):
        _run(config, alone, tmp_path)
    record = _run(config, alone, tmp_path, ways=WAYS[:2], real_scores=real)
    assert record["denoising"]["levels"] == {}
    values = [{n: m["value"] for n, m in r["metrics"]["vae_ceiling"].items()} for r in (record, evaluated[1])]
    assert values[0] == values[1]


def test_a_single_story_has_scores_and_no_distances(config, bundle, tmp_path, capsys):
    record = _run(config, bundle, tmp_path, told=1, ways=WAYS[:1])
    assert record["others"] == {} and record["protocol"]["others"] == 0
    [(name, found)] = record["metrics"].items()
    assert name == "ground_truth" and all(n.startswith("story_") and m["interval"] is None for n, m in found.items())
    assert "distances need at least 2 stories" in capsys.readouterr().err


@pytest.mark.parametrize(
    "ways, problem",
    [
        (("ground_truth", "magic"), "--ways: magic is unknown; choose of ground_truth, vae_ceiling, nuwa_xl"),
        (("nuwa_xl",), "--ways: ground_truth is missing, by which all are measured"),
        ((), "--ways: ground_truth is missing"),
    ],
)
def test_unknown_ways_and_ways_without_ground_truth_are_refused(config, bundle, tmp_path, ways, problem):
    with pytest.raises(ValueError, match=problem):
        _run(config, bundle, tmp_path, ways=ways)
    assert not list(tmp_path.iterdir())


LENGTHS = {"a": 30, "b": 65, "c": 50}  # of the videos of the test split


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """A config of a folder with three videos to test with, of one video each for the other splits."""
    place, names = tmp_path_factory.mktemp("videos"), {}
    for number in range(1000):
        names.setdefault(survey.split_of(f"{number:03}.mp4", 0.3), []).append(f"{number:03}.mp4")
    chosen = dict(zip(names["test"], LENGTHS.values())) | {names[split][0]: 30 for split in ("train", "valid")}
    for name, frames in chosen.items():
        grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 3
        video_io.write_mp4(place / name, np.broadcast_to(grey, (frames, 16, 16, 3)), 10, gop=8)
        (place / name).with_suffix(".txt").write_text(f"video {name}")
    made = config.copy_and_resolve_references()
    made.data.update(source="folder", path=str(place), eval_fraction=0.3)
    return made, names["test"][:3]


def test_first_windows_of_all_videos_come_before_second_ones(folder):
    config, names = folder
    held = held_out.HeldOut(config, 4, 28)
    whole = np.arange(28)
    captions = [held.captions(i, whole) for i in range(4)]
    assert [set(c) for c in captions] == [{f"video {names[i]}"} for i in (0, 1, 2, 1)]
    assert {len(c) for c in captions} == {28}
    first = [held.frames(i, whole[:2]).mean((1, 2, 3)) / 3 for i in range(4)]
    np.testing.assert_allclose(first, [[0, 1]] * 3 + [[28, 29]], atol=1)
    assert held.frames(3, whole).shape == (28, 16, 16, 3)
    told = held.protocol(2)
    assert (told["source"], told["split"], told["frame_size"]) == ("folder", "test", 16)
    assert told["sha256"] == held_out.HeldOut(config, 2, 28).digest(2) != held.digest(3)
    other = config.copy_and_resolve_references()
    other.data.caption_fill = "nearest" if config.data.caption_fill == "none" else "none"
    assert held_out.HeldOut(other, 2, 28).digest(2) == told["sha256"]  # these captions have no gap to fill
    captions_changed = held_out.HeldOut(config, 2, 28)
    captions_changed.captions = lambda i, index: ["another story"] * len(index)
    assert captions_changed.digest(2) != told["sha256"]


def test_too_few_held_out_windows_are_refused_with_their_number(folder):
    with pytest.raises(ValueError, match="3 held-out videos give 4 windows of 28 frames, and 5 are needed; lower"):
        held_out.HeldOut(folder[0], 5, 28)


@pytest.mark.parametrize("field, value", [("fps", 5.0), ("eval_fraction", 0.2)])
def test_real_videos_that_are_read_otherwise_are_measured_anew(folder, bundle, tmp_path, capsys, field, value):
    config, changed = folder[0], folder[0].copy_and_resolve_references()
    changed.data[field] = value
    index = np.arange(12)
    held = [held_out.HeldOut(each, 2, 12) for each in (config, changed)]
    shown = [(videos.frames(1, index).tobytes(), videos.captions(1, index)) for videos in held]
    assert shown[0] != shown[1]
    records = []
    for name, each in (("a", config), ("b", changed)):
        capsys.readouterr()
        _run(each, bundle, tmp_path / name, ways=WAYS[:1], frames=12, others=0, real_scores=tmp_path / "real")
        records.append(_told(capsys))
    assert records == [["ground_truth, story 1", "ground_truth, story 2"]] * 2


def test_toons_gives_as_many_videos_as_asked_for(config):
    held = held_out.HeldOut(config, 30, 80)  # more and longer ones than training has
    frames, captions = held.frames(29, np.array([0, 79])), held.captions(29, np.arange(80))
    assert frames.shape == (2, 16, 16, 3) and len(captions) == 80 and all(captions)
    again = held_out.HeldOut(config, 35, 80)
    np.testing.assert_array_equal(again.frames(29, np.array([0, 79])), frames)


def test_evaluations_may_keep_the_same_at_the_same_time(tmp_path):
    shared = ledger_lib.Ledger(tmp_path, {"real": 1})
    write = lambda number: shared.write("ground_truth", number // 8, {"n": number // 8}, {"x": np.full(3, number // 8)})
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    assert [shared.read("ground_truth", i)["n"] for i in range(50)] == list(range(50))
    assert all((shared.arrays("ground_truth", i)["x"] == i).all() for i in range(50))
    assert not list(tmp_path.rglob("*.part"))
