"""What is measured of videos: which frames are read, what each number is, and which numbers may be compared."""

import dataclasses
import json
import re

import numpy as np
import pytest

from nuwaxl_jax.evaluation import comparison
from nuwaxl_jax.evaluation import frechet
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import protocols
from nuwaxl_jax.evaluation.features import networks


def _stills(frames):
    """Mean colours, float32 [n, 3]."""
    return frames.mean((1, 2)).astype(np.float32)


def _clips(clips):
    """Mean colours, and how much they change from frame to frame: float32 [n, 6]."""
    colours = clips.mean((2, 3))  # [n, T, 3]
    motion = np.abs(np.diff(colours, axis=1)).mean(1)
    return np.concatenate([colours.mean(1), 3 * motion], axis=-1).astype(np.float32)


class _Similarity:
    """How many letters a caption has, and how bright the frame is."""

    def protocol(self):
        return {"network": "letters", "weights": "none"}

    def __call__(self, frames, captions):
        return np.array([len(caption) + frame.mean() / 255 for frame, caption in zip(frames, captions)], np.float32)


def _measures(**changed):
    clips = networks.Network("clips", "c" * 64, True, "none", 6, _clips)
    stills = networks.Network("stills", "s" * 64, True, "none", 3, _stills, fid=True)
    return dataclasses.replace(measures_lib.Measures(clips, stills, _Similarity()), **changed)


def _video(number, frames=40):
    """A colour of its own, that walks."""
    rng = np.random.default_rng(number)
    walk = rng.uniform(60, 190, 3) + np.cumsum(rng.normal(0, 3, (frames, 3)), axis=0)
    return np.clip(walk[:, None, None] + rng.normal(0, 4, (frames, 4, 4, 3)), 0, 255).astype(np.uint8)


WHICH = measures_lib.choose(40, block=10, blocks=4, stills=8)
DATA, SUBJECT = {"source": "toons"}, {"way": "a"}


def _read(videos, which=WHICH, measures=None):
    captions = ["a caption"] * which.num_frames
    return [(measures or _measures()).read(video, captions, which) for video in videos]


def _records(real, made, which=WHICH, measures=None, paired=True):
    common = dict(paired=paired, data=DATA, subject=SUBJECT)
    return protocols.records(real, made, which, measures or _measures(), **common)


@pytest.fixture(scope="module")
def real():
    return [_video(i) for i in range(12)]


@pytest.fixture(scope="module")
def made():
    return [_video(100 + i) // 2 + 40 for i in range(12)]


def test_frames_are_spread_evenly_with_both_ends():
    which = measures_lib.choose(160, blocks=3, stills=5)
    assert which.blocks == (0, 4, 9) and which.stills == (0, 40, 80, 119, 159)
    assert len(which.spread) == 16 and (which.spread[0], which.spread[-1]) == (0, 159)
    assert set(np.diff(which.spread)) <= {10, 11}
    np.testing.assert_array_equal(which.clips(), [range(0, 16), range(64, 80), range(144, 160)])
    for frames in range(1, 200):
        which = measures_lib.choose(frames, block=11, blocks=4, stills=7)
        for chosen, there, wanted in ((which.blocks, frames // 11, 4), (which.stills, frames, 7)):
            assert len(set(chosen)) == len(chosen) == min(there, wanted) and list(chosen) == sorted(chosen)
            assert not chosen or (chosen[0] == 0 and chosen[-1] == there - 1 or wanted == 1)
        assert which.clips().size == 0 or which.clips().max() < frames
        assert len(which.spread) == (11 if frames > 11 else 0)


def test_short_videos_have_no_clips_and_a_single_block_no_spread():
    short, single = measures_lib.choose(12), measures_lib.choose(16)
    assert short.blocks == short.spread == () and len(short.stills) == 12 and short.clips().shape == (0, 16)
    assert single.blocks == (0,) and single.spread == ()
    [read] = _read([_video(0, 12)], short)
    assert set(read) == {"stills", "similarity", "digest"}
    records = _records(*[_read([_video(i, 12), _video(i + 1, 12)], short) for i in (0, 5)], short)
    assert list(records) == ["avg_fid"]


def test_blocks_too_short_for_the_network_are_refused():
    with pytest.raises(ValueError, match="--block: 9 frames are too few; I3D needs at least 10"):
        measures_lib.choose(40, block=9)


def test_videos_of_another_length_are_refused():
    with pytest.raises(ValueError, match="the video has 39 frames, not 40"):
        _read([_video(0, 39)])


def test_features_are_those_of_the_chosen_frames(real):
    [read] = _read(real[:1])
    video = real[0]
    np.testing.assert_array_equal(read["clips"], _clips(video.reshape(4, 10, 4, 4, 3)))
    np.testing.assert_array_equal(read["spread"], _clips(video[None, list(WHICH.spread)]))
    np.testing.assert_array_equal(read["stills"], _stills(video[list(WHICH.stills)]))
    measures = _measures()
    captions = [f"{'x' * i}" for i in range(40)]
    told = measures.read(video, captions, WHICH)["similarity"]
    np.testing.assert_allclose(told, [i + video[i].mean() / 255 for i in WHICH.stills], rtol=1e-5)


def test_the_numbers_are_what_their_names_say(real, made):
    one, other = _read(real), _read(made)
    records = _records(one, other)
    names = ["b_fvd_10", "b_fvd_10_pooled", "fvd_10", "fvd_spread_10", "avg_fid"]
    assert list(records) == names
    clips = [np.stack([video["clips"] for video in videos]) for videos in (one, other)]  # [videos, blocks, d]
    places = [frechet.distance_of_samples(clips[0][:, i], clips[1][:, i]) for i in range(4)]
    value = {name: records[name]["value"] for name in names}
    assert value["b_fvd_10"] == pytest.approx(np.mean(places), abs=1e-6)
    assert records["b_fvd_10"]["by_block"] == pytest.approx(places, abs=1e-4)
    pooled = frechet.distance_of_samples(*(x.reshape(48, 6) for x in clips))
    assert value["b_fvd_10_pooled"] == pytest.approx(pooled, abs=1e-6)
    drawn = np.random.default_rng(16).integers(4, size=12)
    assert len(set(drawn)) > 1
    single = frechet.distance_of_samples(*(np.stack([x[i, drawn[i]] for i in range(12)]) for x in clips))
    assert value["fvd_10"] == pytest.approx(single, abs=1e-6)
    spread = frechet.distance_of_samples(*(np.concatenate([v["spread"] for v in x]) for x in (one, other)))
    assert value["fvd_spread_10"] == pytest.approx(spread, abs=1e-6)
    stills = frechet.distance_of_samples(*(np.concatenate([v["stills"] for v in x]) for x in (one, other)))
    assert value["avg_fid"] == pytest.approx(stills, abs=1e-6)
    for record in records.values():
        low, high = record["interval"]
        assert low < record["value"] < high and record["subject"] == SUBJECT
        assert json.loads(json.dumps(record)) == record
        protocol = record["protocol"]
        assert protocol["frames"] == 40 and protocol["videos"] == 12 and protocol["captions"].startswith("those of")
        assert protocol["real"] == {"source": "toons", "videos": 12, "digest": protocols.digest(one)}
    assert records["fvd_10"]["protocol"]["blocks"] == [0, 1, 2, 3]
    assert records["avg_fid"]["protocol"]["weights"] == "s" * 64


def test_similarity_is_the_mean_over_frames_and_videos(real):
    read = _read(real)
    [(name, record)] = protocols.similarity(read, WHICH, _measures(), data=DATA, subject=SUBJECT).items()
    expected = np.mean([video["similarity"] for video in read])
    assert name == "clip_similarity" and record["value"] == pytest.approx(expected, abs=1e-6)
    assert record["interval"][0] < record["value"] < record["interval"][1]
    assert record["protocol"]["stills"] == list(WHICH.stills)
    assert protocols.similarity(read, WHICH, _measures(similarity=None), data=DATA, subject=SUBJECT) == {}


def test_a_distance_has_that_of_other_real_videos_beside_it(real, made):
    others = _records(_read(real), _read([_video(50 + i) for i in range(7)]), paired=False)
    common = dict(paired=True, data=DATA, subject=SUBJECT, floor=others)
    for name, record in protocols.records(_read(real), _read(made), WHICH, _measures(), **common).items():
        assert record["floor"] == {"value": others[name]["value"], "videos": 7, **SUBJECT}


def test_means_of_single_videos_are_records_with_intervals():
    found = {"psnr": [30.0, 32.0, 31.0, 35.0, 29.0], "action": [1.0, None, 0.5, None, 0.0], "direction": [None] * 5}
    records = protocols.means(found, {"read by": "a"}, SUBJECT)
    assert list(records) == ["psnr", "action"] and records["psnr"]["value"] == pytest.approx(31.4)
    low, high = records["psnr"]["interval"]
    assert 29 < low < 31.4 < high < 35 and records["psnr"]["notes"] == []
    assert records["action"]["value"] == pytest.approx(0.5) and records["action"]["interval"] is None  # of three
    assert records["action"]["notes"] == ["not to be measured in 2 of 5 videos"]
    other = protocols.means({"psnr": found["psnr"]}, {"read by": "b"}, SUBJECT)
    with pytest.raises(comparison.ProtocolError, match='psnr: other protocols.*read by: "a", "b"'):
        comparison.check("psnr", records["psnr"], other["psnr"])


def test_equal_videos_are_at_zero(real):
    read = _read(real)
    for record in _records(read, read).values():
        assert record["value"] == pytest.approx(0, abs=1e-6)
        assert record["interval"] == pytest.approx([0, 0], abs=1e-6)


def test_frozen_and_shuffled_videos_are_found_out_by_what_sees_motion(real):
    which = measures_lib.choose(40, block=10, blocks=4, stills=40)  # all frames
    one = _read(real, which)
    value = lambda videos: {name: r["value"] for name, r in _records(one, _read(videos, which), which).items()}
    order = np.random.default_rng(0).permutation(40)
    shuffled, frozen = value([video[order] for video in real]), value([video[:1].repeat(40, 0) for video in real])
    assert shuffled["avg_fid"] == pytest.approx(0, abs=1e-3)  # the same frames
    assert min(shuffled[f"{name}_10"] for name in ("b_fvd", "fvd", "fvd_spread")) > 10
    assert min(frozen[f"{name}_10"] for name in ("b_fvd", "fvd", "fvd_spread")) > 10 and frozen["avg_fid"] > 1


def test_blocks_in_another_order_are_found_out_by_their_places_alone(real):
    one = _read(real)
    made = _read([video.reshape(4, 10, 4, 4, 3)[[3, 0, 1, 2]].reshape(video.shape) for video in real])
    records = _records(one, made)
    assert records["b_fvd_10_pooled"]["value"] == pytest.approx(0, abs=1e-3)
    assert records["b_fvd_10"]["value"] > 1


def test_sets_of_one_video_are_refused(real):
    read = _read(real[:3])
    with pytest.raises(ValueError, match="real videos: 1 are too few for a distance; at least 2"):
        _records(read[:1], read)
    with pytest.raises(ValueError, match="made videos: 1 are too few for a distance; at least 2"):
        _records(read, read[:1], paired=False)


def test_sets_of_other_sizes_are_measured_unpaired(real, made):
    record = _records(_read(real), _read(made[:5]), paired=False)["b_fvd_10"]
    assert record["protocol"]["captions"] == "others"
    assert (record["protocol"]["real"]["videos"], record["protocol"]["videos"]) == (12, 5)


def test_notes_say_what_a_number_is_not(real, made):
    records = _records(_read(real[:5]), _read(made[:5]))
    few = "5 samples of 6 features: covariances are singular, and the distance is biased upwards"
    assert records["b_fvd_10"]["notes"][0].startswith(few) and records["fvd_10"]["notes"][0].startswith(few)
    [pooled] = records["b_fvd_10_pooled"]["notes"]  # 20 samples, of few videos
    assert pooled.startswith("5 videos, of which 20 samples of 6 features depend on one another, and the distance is b")
    assert records["avg_fid"]["notes"] == [] and "floor" not in records["avg_fid"]  # 5 videos of 3 features
    assert all(record["notes"] == [] for record in _records(_read(real[:7]), _read(made[:7])).values())
    other = _measures(stills=dataclasses.replace(_measures().stills, fid=False, standard=False))
    records = _records(_read(real[:5]), _read(made[:5]), measures=other)
    assert "avg_fid" not in records and "weights are not the standard ones" in records["frechet_stills"]["notes"]


def test_only_what_there_are_networks_for_is_measured(real, made):
    alone = measures_lib.Measures(stills=_measures().stills)
    assert list(_records(_read(real, measures=alone), _read(made, measures=alone), measures=alone)) == ["avg_fid"]
    assert set(alone.protocol()) == {"stills"} and any("no FVD" in note for note in alone.notes())
    assert measures_lib.Measures().protocol() == {}
    assert any("--inception=FILE" in note for note in measures_lib.Measures().notes())
    assert _measures().notes() == []


def test_the_digest_is_of_the_frames_that_are_read(real):
    which = measures_lib.choose(40, block=10, blocks=2, stills=2)
    seen = {*which.clips().ravel().tolist(), *which.spread, *which.stills}
    digest = lambda video: protocols.digest(_read([video, real[1]], which))
    before = digest(real[0])
    assert len(before) == 64 and 0 < len(seen) < 40
    for frame in range(40):
        video = real[0].copy()
        video[frame, 3, 2, 1] ^= 1
        assert (digest(video) != before) == (frame in seen), frame
    one, other = _read(real[:2])
    assert protocols.digest([one, other]) != protocols.digest([other, one])


def test_figures_of_one_protocol_stand_in_one_table(real, made):
    one = _records(_read(real), _read(made))
    other = _records(_read(real), _read([video // 2 for video in made]))
    text = comparison.table({"first": one, "second": other, "nothing": {}})
    head, *rows = text.splitlines()
    assert head.split() == ["first", "second", "nothing"] and [row.split()[0] for row in rows] == list(one)
    assert f"{one['b_fvd_10']['value']:.4g} [" in rows[0] and f"{other['avg_fid']['value']:.4g} [" in rows[-1]
    assert all(row.split()[-1] == "-" for row in rows) and len({len(line) for line in (head, *rows)}) == 1
    comparison.check("b_fvd_10", one["b_fvd_10"], json.loads(json.dumps(other["b_fvd_10"])))


_FEWER = measures_lib.choose(40, block=10, blocks=2, stills=8)
_OTHER = _measures(clips=dataclasses.replace(_measures().clips, sha256="d" * 64))
# Field -> records measured otherwise, and both values as they are told.
CHANGED = {
    "real.digest": (lambda real, made: _records(_read(real)[::-1], _read(made)), '"', '"'),
    "weights": (lambda real, made: _records(_read(real), _read(made), measures=_OTHER), '"ccccc', '"ddddd'),
    "blocks": (lambda real, made: _records(_read(real, _FEWER), _read(made, _FEWER), _FEWER), "[0, 1, 2, 3]", "[0, 3]"),
    "videos": (lambda real, made: _records(_read(real), _read(made[:5]), paired=False), "12", "5"),
    "captions": (lambda real, made: _records(_read(real), _read(made), paired=False), '"those of the real', '"others"'),
}


@pytest.mark.parametrize("field", CHANGED)
def test_other_protocols_are_refused_with_field_and_values(real, made, field):
    first = _records(_read(real), _read(made))
    change, one, other = CHANGED[field]
    records = change(real, made)
    for call in (
        lambda: comparison.check("b_fvd_10", first["b_fvd_10"], records["b_fvd_10"]),
        lambda: comparison.table({"first": first, "second": records}),
    ):
        with pytest.raises(comparison.ProtocolError, match="b_fvd_10: other protocols") as error:
            call()
        [said] = [part for part in str(error.value).split("; ") if part.startswith(f"{field}: ")]
        assert said.startswith(f"{field}: {one}") and f", {other}" in said


def test_fields_that_one_lacks_are_differences():
    assert list(comparison.differences({"a": {"b": 1}}, {"a": {}, "c": [2]})) == ["a.b: 1, null", "c: null, [2]"]


def _write(path, metrics):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "stories": {}}))


def test_evaluations_are_compared_by_their_files(real, made, tmp_path, capsys):
    first = _records(_read(real), _read(made))
    second = _records(_read(real), _read([video // 2 for video in made]))
    _write(tmp_path / "a" / "eval" / "eval.json", {"nuwa_xl": first, "vae_ceiling": first})
    _write(tmp_path / "b" / "eval.json", {"nuwa_xl": second})
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    comparison.run(paths)
    head = capsys.readouterr().out.splitlines()[0]
    columns = [f"{paths[0]}: nuwa_xl", f"{paths[0]}: vae_ceiling", f"{paths[1]}: nuwa_xl"]
    assert [label.strip() for label in re.split("  +", head.strip())] == columns
    comparison.run([str(tmp_path / "b" / "eval.json")])
    assert capsys.readouterr().out.splitlines()[0].split() == ["nuwa_xl"]
    other = _records(_read(real[:5]), _read(made[:5]))
    _write(tmp_path / "c" / "eval.json", {"nuwa_xl": other})
    with pytest.raises(ValueError, match="b_fvd_10: other protocols.*real.digest"):
        comparison.run([*paths, str(tmp_path / "c")])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"metrics": {}}', '{"metrics": 3}', '{"metrics": {"a": 3}}'])
def test_files_without_metrics_are_refused(tmp_path, text):
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(ValueError, match="eval.json"):
        comparison.run([str(tmp_path)])


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no eval.json; give a folder"):
        comparison.run([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="holds no eval.json; give a folder"):
        comparison.run([str(tmp_path)])
    with pytest.raises(ValueError, match="--records is empty"):
        comparison.run([])
