"""Two places of videos against one another: known distances, what is read, going on, and what is refused."""

import json

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax.evaluation import comparison
from nuwaxl_jax.evaluation import frechet
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import video_sets
from nuwaxl_jax.evaluation.features import networks

FRAMES = 24  # two blocks of 10


class _Clips:
    """Mean colours of a clip; counts what it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, clips):
        self.calls += 1
        return clips.mean((1, 2, 3)).astype(np.float32)


class _Letters:
    def protocol(self):
        return {"network": "letters", "weights": "none"}

    def __call__(self, frames, captions):
        return np.array([len(caption) for caption in captions], np.float32)


def _measures(clips=None, similarity=None):
    read = networks.Network("clips", "c" * 64, True, "none", 3, clips or _Clips())
    return measures_lib.Measures(read, None, similarity)


def _colours(seed, videos, frames=FRAMES):
    return np.random.default_rng(seed).integers(0, 256, (videos, frames, 3)).astype(np.uint8)


def _write(folder, colours, captions=True, height=12):
    """Each video a folder of pictures of one colour each, 12 x 8 pixels."""
    for i, video in enumerate(colours):
        (folder / f"v{i:02d}").mkdir(parents=True)
        for k, colour in enumerate(video):
            Image.new("RGB", (8, height), tuple(colour.tolist())).save(folder / f"v{i:02d}" / f"{k:04d}.png")
        if captions:
            (folder / f"v{i:02d}.txt").write_text("a" * (i + 1))
    return str(folder)


def _run(made, real, workdir, measures=None, **scope):
    scope = video_sets.Scope(block=10, **scope)
    measures = measures or _measures()
    return video_sets.run(made, real, str(workdir), scope=scope, measures=measures, progress=lambda line: None)


def test_the_distance_is_that_of_the_colours_and_0_of_a_copy(tmp_path):
    of = {"made": _colours(0, 6), "real": _colours(1, 7)}
    made, real = (_write(tmp_path / name, colours) for name, colours in of.items())
    record = _run(made, real, tmp_path / "out")
    blocks = {name: colours[:, :20].reshape(len(colours), 2, 10, 3).mean(2) for name, colours in of.items()}
    known = [frechet.distance_of_samples(blocks["real"][:, i], blocks["made"][:, i]) for i in range(2)]
    found = record["metrics"]["made"]["b_fvd_10"]
    assert found["value"] == pytest.approx(np.mean(known), rel=1e-4) and found["protocol"]["real"]["videos"] == 7
    assert found["protocol"]["captions"] == "others"
    halves = [blocks["real"][first::2].reshape(-1, 3) for first in (0, 1)]
    assert record["halves"]["b_fvd_10_pooled"]["value"] == pytest.approx(frechet.distance_of_samples(*halves), rel=1e-4)
    assert json.loads((tmp_path / "out" / "score" / "score.json").read_text())["metrics"] == record["metrics"]
    assert found["floor"]["value"] == record["halves"]["b_fvd_10"]["value"] and found["floor"]["videos"] == 3
    copy = _write(tmp_path / "copy", of["real"])
    same = _run(copy, real, tmp_path / "same")["metrics"]["made"]["b_fvd_10"]
    assert same["value"] == pytest.approx(0, abs=1e-6) and same["protocol"]["captions"] == "those of the real videos"


def test_what_was_read_is_not_read_again_and_other_videos_are(tmp_path):
    made, real = _write(tmp_path / "a", _colours(0, 3)), _write(tmp_path / "b", _colours(1, 3))
    clips = _Clips()
    first = _run(made, real, tmp_path / "out", _measures(clips))
    read = clips.calls
    again = _run(made, real, tmp_path / "out", _measures(clips))
    assert clips.calls == read and again["metrics"] == first["metrics"]
    Image.new("RGB", (8, 12), (255, 0, 0)).save(tmp_path / "a" / "v00" / "0000.png")
    other = _run(made, real, tmp_path / "out", _measures(clips))
    assert clips.calls == read + read // 2 and other["metrics"] != first["metrics"]


def test_size_and_length_are_those_of_the_smallest_and_are_in_the_protocol(tmp_path, capsys):
    made = _write(tmp_path / "a", _colours(0, 3, frames=30), height=6)
    real = _write(tmp_path / "b", _colours(1, 3))
    record = _run(made, real, tmp_path / "out")
    assert (record["protocol"]["frames"], record["protocol"]["size"]) == (FRAMES, 6)
    longer = _run(made, str(tmp_path / "a"), tmp_path / "long", frames=30)
    assert longer["protocol"]["frames"] == 30 and longer["metrics"]["made"]["b_fvd_10"]["protocol"]["blocks"] == [
        0,
        1,
        2,
    ]
    with pytest.raises(ValueError, match="--real: .* has 0 videos of at least 30 frames; a distance needs"):
        _run(made, real, tmp_path / "out", frames=30)
    assert "shorter than 30 frames" in capsys.readouterr().err
    with pytest.raises(comparison.ProtocolError, match="b_fvd_10: other protocols"):
        comparison.run([str(tmp_path / "out"), str(tmp_path / "long")])
    comparison.run([str(tmp_path / "out")])
    assert "b_fvd_10" in capsys.readouterr().out


def test_captions_are_compared_where_every_frame_has_one(tmp_path):
    real = _write(tmp_path / "b", _colours(1, 3))
    told = _run(_write(tmp_path / "a", _colours(0, 3)), real, tmp_path / "out", _measures(similarity=_Letters()))
    assert told["metrics"]["made"]["clip_similarity"]["value"] == pytest.approx(2.0)
    other = _run(_write(tmp_path / "d", _colours(5, 3)), real, tmp_path / "other", _measures(similarity=_Letters()))
    of = [each["metrics"]["made"] for each in (told, other)]
    assert all(name in comparison.table({"one": of[0], "other": of[1]}) for name in ("clip_similarity", "b_fvd_10"))
    (tmp_path / "d" / "v01.txt").write_text("something else")
    changed = _run(str(tmp_path / "d"), real, tmp_path / "changed", _measures(similarity=_Letters()))["metrics"]["made"]
    with pytest.raises(comparison.ProtocolError, match="clip_similarity: other protocols.*captions of.sha256"):
        comparison.table({"one": of[0], "changed": changed})
    again = _run(str(tmp_path / "d"), real, tmp_path / "other", _measures(similarity=_Letters()))["metrics"]["made"]
    assert again["clip_similarity"] == changed["clip_similarity"]  # what was kept of the old captions is not taken
    assert again["clip_similarity"]["value"] != of[1]["clip_similarity"]["value"]
    silent = _write(tmp_path / "c", _colours(0, 3), captions=False)
    record = _run(silent, real, tmp_path / "silent", _measures(similarity=_Letters()))
    assert "clip_similarity" not in record["metrics"]["made"] and "not every frame" in record["notes"][-1]


def test_places_that_cannot_be_used_are_refused_by_their_flag(tmp_path):
    real = _write(tmp_path / "b", _colours(1, 3))
    with pytest.raises(ValueError, match="--made is missing"):
        _run("", real, tmp_path / "out")
    with pytest.raises(ValueError, match="--made: .*none does not exist"):
        _run(str(tmp_path / "none"), real, tmp_path / "out")
    with pytest.raises(ValueError, match="--real: .* has 1 videos; a distance needs at least 2"):
        _run(real, _write(tmp_path / "one", _colours(0, 1)), tmp_path / "out")
    with pytest.raises(ValueError, match="--i3d: no network is at hand"):
        _run(real, real, tmp_path / "out", measures_lib.Measures())
    assert not (tmp_path / "out").exists()
