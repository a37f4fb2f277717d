"""What weights were not trained for is said, in one line that names the field; all else is not."""

import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.hierarchy import notes
from nuwaxl_jax.hierarchy import sample

EMPTY, FIRST = "config.diffusion.unconditional_prob is 0", "config.diffusion.first_only_prob is 0"


def _config(strategy="diffusion_over_diffusion", unconditional=0.0, first_only=0.0):
    config = config_lib.default()
    config.data.source = "folder"
    config.hierarchy.strategy = strategy
    config.diffusion.update(unconditional_prob=unconditional, first_only_prob=first_only)
    return config


@pytest.mark.parametrize(
    "strategy, frames, wanted",
    [
        ("diffusion_over_diffusion", 3376, []),
        ("diffusion_over_diffusion", 227, []),  # the smallest tree of all three levels
        ("diffusion_over_diffusion", 226, [f"{EMPTY}: level 1"]),
        ("diffusion_over_diffusion", 16, [f"{EMPTY}: level 2"]),
        ("side_by_side", 226, []),
        ("independent", 226, [f"{EMPTY}: level 2"]),
        ("autoregressive", 226, [f"{EMPTY}: level 2", f"{FIRST}: level 2"]),
        ("hierarchy_2", 3376, [f"{EMPTY}: level 1", f"{FIRST}: level 1"]),
    ],
)
def test_segments_that_training_never_showed_are_told_of(strategy, frames, wanted):
    config = _config(strategy)
    said = notes.of_video(config, sample.make_plans(config, frames), ["a cat"])
    assert len(said) == len(wanted) and all(line.startswith(start) for line, start in zip(said, wanted))
    assert all("\n" not in line and "train with it above 0" in line for line in said)
    assert all(("ask for 227 frames" in line) == (strategy == "diffusion_over_diffusion") for line in said)
    trained = _config(strategy, 0.05, 0.15)
    assert notes.of_video(trained, sample.make_plans(trained, frames), ["a cat"]) == []


@pytest.mark.parametrize("strategy, level", [("autoregressive", 2), ("hierarchy_2", 1)])
def test_more_first_frames_than_training_gave_are_told_of(strategy, level):
    config = _config(strategy, 0.05, 0.15)
    config.hierarchy.overlap = 8
    [line] = notes.of_video(config, sample.make_plans(config, 3376), ["a cat"])
    assert line.startswith(f"config.hierarchy.overlap is 8: level {level}") and "first_frames=8" in line
    config.diffusion.first_frames = 8
    assert notes.of_video(config, sample.make_plans(config, 3376), ["a cat"]) == []


def test_prompts_are_told_of_where_toons_alone_have_trained():
    config = _config(unconditional=0.05)
    plans = sample.make_plans(config, 16)
    config.data.source = "toons"
    [line] = notes.of_video(config, plans, ["a cat in Paris"])
    assert line.startswith("1 of 1 prompts are no captions of toons")


def test_sampling_says_so_and_keeps_its_plan(toons_presets, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(config, networks, bundle, prompts, index, plans, *rest):
        assert [plan.network_level for plan in plans] == [1, 2]
        raise Enough

    monkeypatch.setattr(sample, "_latents", stop)
    config = toons_presets.get_config("tiny")
    config.diffusion.unconditional_prob = 0.0
    story, said = tmp_path / "story.txt", []
    story.write_text("a cat in Paris\n")
    with pytest.raises(Enough):
        sample.run(config, {}, {}, str(story), str(tmp_path / "out"), num_frames=10, say=said.append)
    assert said[1].startswith(f"{story}: 1 of 1 prompts") and said[2].startswith(f"{story}: {EMPTY}: level 1")
    assert "ask for 11 frames or more" in said[2] and len(said) == 3
