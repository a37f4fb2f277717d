"""What would end a run at one of its later stages ends it before the first."""

import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import ahead
from nuwaxl_jax.training import caching
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import loop


@pytest.fixture
def config(toons_presets):
    """The tiny preset, with batches that eight devices share."""
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    for stage in config.train.stages:
        config.train[stage].batch_size = 8
    return config


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("train.denoiser.batch_size", 12, "train.denoiser.batch_size / accumulate is 12, which mesh.data"),
        ("train.vae.accumulate", 2, "train.vae.batch_size / accumulate is 4, which mesh.data"),
        (
            "train.image_denoiser.min_lr_ratio",
            2.0,
            r"train.image_denoiser.min_lr_ratio is 2.0; it must lie in \[0, 1\]",
        ),
        ("diffusion.min_snr_gamma", 0.0, "diffusion.min_snr_gamma is 0.0; it must be positive"),
        ("train.denoiser.trainable", "no_such", "train.denoiser.trainable: 'no_such' is in no parameter's path"),
    ],
)
@pytest.mark.parametrize("weights", ["shared", "per_level"])
def test_what_a_later_stage_refuses_is_refused_before_the_first(config, tmp_path, field, value, message, weights):
    config.mtd.weights = weights
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message) as error:
        loop.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_only_stages_that_are_to_be_trained_are_asked(config, tmp_path):
    config.train.image_vae.batch_size = 3  # it is finished
    config.train.denoiser.trainable = "new"
    ahead.check(config, str(tmp_path), ["vae", "image_denoiser", "denoiser"], partitioning.make_mesh())
    assert not list(tmp_path.iterdir())


def test_processes_that_share_rows_are_refused(config, tmp_path, monkeypatch):
    real = partitioning.processes_of
    monkeypatch.setattr(partitioning, "processes_of", lambda mesh: real(mesh) + [0, 1])  # as of one device a process
    config.mesh.model = 2
    with pytest.raises(ValueError, match="mesh.model is 2, so processes 0 and 1 would hold the same rows"):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_first_process_alone_says_which_levels_the_videos_reach(config, monkeypatch, capsys):
    monkeypatch.setattr(caching.pipeline, "make_items", lambda *_, **__: print("of 9 episodes, ..."))
    for process, said in ((0, "of 9 episodes, ...\n"), (1, "")):
        monkeypatch.setattr(caching.jax, "process_index", lambda process=process: process)
        caching.look_ahead(config, ["denoiser"])
        assert capsys.readouterr().out == said


class TestVAEUnderADenoiser:
    @pytest.fixture(params=["image_denoiser", "denoiser", "denoiser_0"])
    def run(self, request, config, tmp_path):
        """train(stages, steps of the VAE) in a workdir whose VAE and one denoiser have been trained."""
        for stage, step in (("image_vae", 6), ("vae", 6), (request.param, 3)):
            (tmp_path / stage / "checkpoints" / str(step)).mkdir(parents=True)

        def check(*stages, steps=6):
            config.train.vae.num_steps = steps
            lineage.check_latents_stay(config, str(tmp_path), stages)

        check.workdir, check.config, check.denoiser = tmp_path, config, request.param
        return check

    def test_more_steps_of_the_vae_are_refused(self, run):
        run("image_denoiser", "denoiser")
        run.config.train.vae.num_steps = 9
        message = (
            f"train.vae.num_steps: vae would go from step 6 to 9 under {run.denoiser}, .*; set it to 6, or use a new"
        )
        with pytest.raises(ValueError, match=message):
            loop.train(run.config, str(run.workdir))
        assert not (run.workdir / "config.json").exists()

    def test_a_vae_in_place_of_the_image_vae_is_refused(self, run):
        (run.workdir / "vae" / "checkpoints" / "6").rmdir()
        with pytest.raises(ValueError, match=f"train.stages: vae would go .* under {run.denoiser}, .*; leave it out"):
            run("vae", "denoiser")

    def test_it_may_make_again_what_was_damaged(self, run):
        folder = run.workdir / "vae" / "checkpoints"
        (folder / "6").rename(folder / "6.damaged")
        (folder / "3").mkdir()
        run("vae", "denoiser")
        with pytest.raises(ValueError, match="train.vae.num_steps: .* set it to 6"):
            run("vae", "denoiser", steps=7)

    def test_without_a_denoiser_it_may_go_on(self, run):
        (run.workdir / run.denoiser / "checkpoints" / "3").rmdir()
        run("vae", "denoiser", steps=9)
