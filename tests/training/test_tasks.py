"""What the tasks feed their networks, seen through networks of one line each."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.training import denoiser_task
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import tasks
from nuwaxl_jax.training import vae_task

B, L, SIDE, N = 6, 5, 4, 3
NULL = np.array([1, 2, 0], np.int32)


class FakeNetworks:
    """The latent is the picture itself plus 1, without noise; the denoiser answers `answer(**inputs)` or x_t."""

    def __init__(self, answer=None, logvar=-30.0):
        self.diffusion = gaussian.GaussianDiffusion.create(schedule="cosine", num_timesteps=10, prediction="x0")
        self.answer, self.logvar, self.seen = answer, logvar, {}
        self.latent_shape = (SIDE, SIDE, 3)

    def encode(self, params, frames, temporal=True):
        self.seen["temporal"] = temporal
        return frames * params["gain"] + 1.0, jnp.full(frames.shape, self.logvar)

    def decode(self, params, z, temporal=True):
        del temporal
        return (z - 1.0) / params["gain"] + params["offset"]

    def text_states(self, params, tokens):
        del params
        return tokens.astype(jnp.float32)[..., None]

    def denoise(self, params, x_t, t, text, cond, cond_mask, level):
        self.seen.update(x_t=x_t, t=t, text=text, cond=cond, cond_mask=cond_mask, level=level)
        return x_t * params["gain"] if self.answer is None else self.answer(**self.seen)

    def denoise_images(self, params, x_t, t, text):
        self.seen.update(x_t=x_t, t=t, text=text)
        return x_t * params["gain"] if self.answer is None else self.answer(**self.seen)

    def null_tokens(self):
        return NULL


def _batch(level=1):
    rng = np.random.default_rng(0)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (B, L, SIDE, SIDE, 3)), jnp.uint8),
        "tokens": jnp.asarray(rng.integers(3, 9, (B, L, N)), jnp.int32),
        "level": jnp.full(B, level, jnp.int32),
    }


FROZEN = {
    "vae": {"gain": 1.0, "offset": 0.0},
    "latent_shift": jnp.array([1.0, 0.0, 2.0]),
    "latent_scale": jnp.array([1.0, 2.0, 0.5]),
}
PARAMS = {"gain": 1.0, "text": None}


def _keys(count=B, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def _pixels(batch):
    return np.asarray(batch["frames"], np.float32) / 127.5 - 1


def _x0(batch):
    return (_pixels(batch) + 1.0 - np.array([1.0, 0.0, 2.0])) * np.array([1.0, 2.0, 0.5])


@pytest.mark.parametrize("recon, expected", [("l1", 0.5), ("l2", 0.25), ("l1+l2", 0.75)])
@pytest.mark.parametrize("temporal", [True, False])
def test_vae_loss_is_mean_reconstruction_and_mean_kl(recon, expected, temporal):
    networks = FakeNetworks(logvar=-30.0)
    task = vae_task.VAETask(networks, temporal=temporal, recon=recon, kl_weight=0.01)
    batch = _batch()
    loss, values = task.loss({"gain": 1.0, "offset": 0.5}, {}, batch, _keys())
    mean = _pixels(batch) + 1.0
    kl = np.mean(0.5 * (mean**2 + np.exp(-30.0) - 1 + 30.0))
    assert loss == pytest.approx(expected + 0.01 * kl, rel=1e-5)
    host, _ = metrics.to_host(values)
    assert host["recon"] == pytest.approx(expected, rel=1e-5)
    assert host["kl"] == pytest.approx(kl, rel=1e-5)
    assert host["psnr"] == pytest.approx(10 * np.log10(4 / 0.25), rel=1e-4)  # pixels span 2
    assert networks.seen["temporal"] is temporal
    assert (task.no_decay == "") is temporal  # image training leaves temporal layers at the identity


def test_unknown_reconstruction_and_handover_are_refused():
    with pytest.raises(ValueError, match="vae.loss is 'lpips'; choose one of"):
        vae_task.VAETask(FakeNetworks(), temporal=True, recon="lpips", kl_weight=0.0)
    with pytest.raises(ValueError, match="hierarchy.handover is 'video'"):
        denoiser_task.DenoiserTask(FakeNetworks(), depth=3, handover="video")


def test_vae_samples_the_posterior_with_each_examples_key():
    task = vae_task.VAETask(FakeNetworks(logvar=0.0), temporal=True, recon="l2", kl_weight=0.0)
    big = {"frames": jnp.zeros((4, L, 32, 32, 3), jnp.uint8)}
    loss, _ = task.loss({"gain": 1.0, "offset": 0.0}, {}, big, _keys(4))
    assert loss == pytest.approx(1.0, rel=0.02)  # the noise's own variance comes back as error


def test_global_segments_are_given_nothing_and_local_ones_their_borders():
    task = denoiser_task.DenoiserTask(FakeNetworks(), depth=3)
    level = jnp.array([0, 1, 2])
    given = np.asarray(task.given_frames(level, L, _keys(3)))
    np.testing.assert_array_equal(given, [[0] * 5, [1, 0, 0, 0, 1], [1, 0, 0, 0, 1]])


def test_shares_of_unconditional_and_first_only_clips():
    task = denoiser_task.DenoiserTask(FakeNetworks(), depth=3, unconditional_prob=0.2, first_only_prob=0.3)
    count = 4000
    given = np.asarray(task.given_frames(jnp.ones(count, jnp.int32), L, _keys(count)))
    assert given[:, 1:-1].sum() == 0
    pairs = list(map(tuple, given[:, [0, -1]].astype(int)))
    shares = [pairs.count(pair) / count for pair in ((0, 0), (1, 0), (1, 1), (0, 1))]
    np.testing.assert_allclose(shares, [0.2, 0.3, 0.5, 0.0], atol=0.03)
    assert np.asarray(task.given_frames(jnp.zeros(count, jnp.int32), L, _keys(count, 1))).sum() == 0


def test_as_many_first_frames_as_asked_for_are_given_equally_often():
    task = denoiser_task.DenoiserTask(FakeNetworks(), depth=3, first_only_prob=0.6, first_frames=3)
    count = 4000
    given = np.asarray(task.given_frames(jnp.ones(count, jnp.int32), L, _keys(count)))
    rows = list(map(tuple, given.astype(int)))
    shares = [rows.count(row) / count for row in ((1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1, 0, 0, 0, 1))]
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.2, 0.4], atol=0.03)


def test_latent_handover_gives_the_clean_scaled_latents_of_given_frames():
    networks, batch = FakeNetworks(), _batch()
    denoiser_task.DenoiserTask(networks, depth=3).loss(PARAMS, FROZEN, batch, _keys())
    x0 = _x0(batch)
    cond, mask = np.asarray(networks.seen["cond"]), np.asarray(networks.seen["cond_mask"])
    assert mask.shape == (B, L, SIDE, SIDE, 1)
    np.testing.assert_array_equal(mask[:, [0, -1]], 1)
    np.testing.assert_array_equal(mask[:, 1:-1], 0)
    np.testing.assert_allclose(cond[:, [0, -1]], x0[:, [0, -1]], atol=1e-5)
    np.testing.assert_array_equal(cond[:, 1:-1], 0)


def test_pixel_handover_encodes_the_masked_video():
    networks, batch = FakeNetworks(), _batch()
    denoiser_task.DenoiserTask(networks, depth=3, handover="pixel").loss(PARAMS, FROZEN, batch, _keys())
    cond = np.asarray(networks.seen["cond"])
    np.testing.assert_allclose(cond[:, [0, -1]], _x0(batch)[:, [0, -1]], atol=1e-5)
    grey = (1.0 - np.array([1.0, 0.0, 2.0])) * np.array([1.0, 2.0, 0.5])  # the encoding of grey, scaled
    np.testing.assert_allclose(cond[:, 1:-1], np.broadcast_to(grey, cond[:, 1:-1].shape), atol=1e-5)


def test_noise_on_the_condition_touches_given_frames_alone():
    networks, batch = FakeNetworks(), _batch()
    denoiser_task.DenoiserTask(networks, depth=3, cond_noise=0.5).loss(PARAMS, FROZEN, batch, _keys())
    difference = np.asarray(networks.seen["cond"])[:, [0, -1]] - _x0(batch)[:, [0, -1]]
    assert difference.std() == pytest.approx(0.5, rel=0.1)
    np.testing.assert_array_equal(np.asarray(networks.seen["cond"])[:, 1:-1], 0)


def test_every_frame_keeps_its_prompt_and_dropped_clips_lose_all():
    count = 400
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 9, (count, L, N)), jnp.int32)
    batch = dict(tokens=tokens)
    task = denoiser_task.DenoiserTask(FakeNetworks(), depth=3, caption_dropout=0.25)  # a token's state is the token
    out = np.asarray(task.text({"text": None}, batch, _keys(count)))[..., 0]
    dropped = (out == NULL).all(axis=(1, 2))
    assert dropped.mean() == pytest.approx(0.25, abs=0.06)
    np.testing.assert_array_equal(out[~dropped], np.asarray(tokens)[~dropped])


@pytest.mark.parametrize("cached", [(), ("text",)])
def test_one_prompt_a_clip_is_its_first_frames_and_keyframes_keep_theirs(cached):
    count = 12
    tokens = np.random.default_rng(0).integers(3, 9, (count, L, N)).astype(np.int32)
    level = np.arange(count) % 3
    batch = dict(tokens=jnp.asarray(tokens), text=jnp.asarray(tokens, jnp.float32)[..., None], level=jnp.asarray(level))
    task = denoiser_task.DenoiserTask(FakeNetworks(), depth=3, per_frame=False, cached=cached)
    out = np.asarray(task.text({"text": None}, batch, _keys(count)))[..., 0]
    np.testing.assert_array_equal(out[level == 0], tokens[level == 0])
    np.testing.assert_array_equal(out[level > 0], np.broadcast_to(tokens[:, :1], tokens.shape)[level > 0])


def test_a_perfect_prediction_has_no_loss_and_noise_is_what_q_sample_adds():
    batch = _batch()
    x0 = jnp.asarray(_x0(batch), jnp.float32)
    networks = FakeNetworks(answer=lambda **_: x0)
    loss, values = denoiser_task.DenoiserTask(networks, depth=3).loss(PARAMS, FROZEN, batch, _keys())
    assert loss == pytest.approx(0.0, abs=1e-9)
    seen = networks.seen
    eps = networks.diffusion.to_eps(seen["x_t"], seen["t"], x0)
    assert np.asarray(eps).std() == pytest.approx(1.0, rel=0.1)
    assert ((seen["t"] >= 0) & (seen["t"] < 10)).all() and len(np.unique(seen["t"])) > 1
    assert metrics.to_host(values)[0]["mse"] == pytest.approx(0.0, abs=1e-9)


def test_a_time_shift_trains_the_noisy_end_more():
    networks = FakeNetworks()
    denoiser_task.DenoiserTask(networks, depth=3, time_shift=1e6).loss(PARAMS, FROZEN, _batch(), _keys())
    assert (np.asarray(networks.seen["t"]) == 9).all()


@pytest.mark.parametrize("on_given, expected", [(True, 2 / 5), (False, 0.0)])
def test_loss_on_given_frames_can_be_left_out(on_given, expected):
    batch = _batch()
    x0 = jnp.asarray(_x0(batch), jnp.float32)
    wrong_borders = x0.at[:, 0].add(1.0).at[:, -1].add(-1.0)
    task = denoiser_task.DenoiserTask(FakeNetworks(answer=lambda **_: wrong_borders), depth=3, loss_on_given=on_given)
    loss, _ = task.loss(PARAMS, FROZEN, batch, _keys())
    assert loss == pytest.approx(expected, abs=1e-6)


def test_metrics_of_a_level_are_means_over_its_clips_and_absent_levels_are_left_out():
    batch = dict(_batch(), level=jnp.array([0, 0, 2, 2, 2, 2]))
    x0 = jnp.asarray(_x0(batch), jnp.float32)
    error = jnp.array([1.0, 3.0, 2.0, 2.0, 2.0, 2.0])[:, None, None, None, None]
    networks = FakeNetworks(answer=lambda **_: x0 + error)
    _, values = denoiser_task.DenoiserTask(networks, depth=3).loss(PARAMS, FROZEN, batch, _keys())
    host, _ = metrics.to_host(values)
    assert host["mse_level_0"] == pytest.approx(5.0, rel=1e-5)
    assert host["mse_level_2"] == pytest.approx(4.0, rel=1e-5)
    assert "mse_level_1" not in host
    assert host["mse"] == pytest.approx((1 + 9 + 16) / 6, rel=1e-5)


def test_no_example_depends_on_its_neighbours():
    task = denoiser_task.DenoiserTask(
        FakeNetworks(), depth=3, caption_dropout=0.3, unconditional_prob=0.3, cond_noise=0.1
    )
    batch, keys = _batch(), jax.random.key_data(_keys())
    order = np.array([3, 0, 5, 1])

    def seen(rows):
        part = {name: value[rows] for name, value in batch.items()}
        task.loss(PARAMS, FROZEN, part, jax.random.wrap_key_data(keys[rows]))
        return dict(task.networks.seen)

    whole, part = seen(np.arange(B)), seen(order)
    for name in ("x_t", "t", "text", "cond", "cond_mask"):
        np.testing.assert_array_equal(np.asarray(whole[name])[order], part[name])


def test_latent_moments_count_the_posteriors_own_variance():
    networks = FakeNetworks(logvar=float(np.log(0.25)))
    video = jnp.asarray(_pixels(_batch()))
    mean, square, noise = latents.channel_moments(networks, {"gain": 1.0}, video)
    z = np.asarray(video) + 1.0
    np.testing.assert_allclose(mean, z.mean(axis=(0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(square - mean**2, z.var(axis=(0, 1, 2, 3)) + 0.25, rtol=1e-4)
    np.testing.assert_allclose(noise, 0.25, rtol=1e-5)


def test_latent_channels_that_are_noise_are_told_of():
    assert lineage.closed_channels(np.array([0.001, 0.06, 0.4])) == ""
    said = lineage.closed_channels(np.array([0.0001, 0.79, 0.0002, 0.51]))
    assert said.startswith("latent channels of 4 that are mostly") and "1 (79 %), 3 (51 %)" in said


def _tiny():
    path = pathlib.Path(__file__).parents[2] / "configs" / "toons.py"
    spec = importlib.util.spec_from_file_location("toons_presets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny")


def test_image_denoiser_sees_each_frame_as_an_image_of_its_own():
    """The answer 0 costs the mean square of the latents; what the network saw tells the rest."""
    networks = FakeNetworks()
    networks.answer = lambda x_t, **_: jnp.zeros_like(x_t)
    task = denoiser_task.ImageDenoiserTask(networks, caption_dropout=0.5)
    batch = _batch()
    loss, values = task.loss(PARAMS, FROZEN, batch, _keys())
    x0 = _x0(batch)
    assert loss == pytest.approx(np.mean(x0**2), rel=1e-5)  # prediction x0, target x0
    assert metrics.to_host(values)[0]["mse"] == pytest.approx(np.mean(x0**2), rel=1e-5)
    seen = networks.seen
    assert seen["temporal"] is True and seen["x_t"].shape == (B * L, SIDE, SIDE, 3)
    # Timesteps: those of a clip are spread evenly over the 10 there are, and clips differ.
    t = np.asarray(seen["t"]).reshape(B, L)
    assert (np.diff(np.sort(t, axis=1), axis=1) == 2).all() and len({tuple(row) for row in t.tolist()}) > 1
    # Noise: what is left of x_t without the picture is standard normal, and no two images share it.
    ac = networks.diffusion.alphas_cumprod[np.asarray(seen["t"])][:, None, None, None]
    eps = (np.asarray(seen["x_t"]) - np.sqrt(ac) * x0.reshape(seen["x_t"].shape)) / np.sqrt(1 - ac)
    assert abs(eps.mean()) < 0.1 and eps.std() == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.corrcoef(eps.reshape(B * L, -1)) - np.eye(B * L)).max() < 0.8
    # Captions are dropped image by image.
    tokens = np.asarray(batch["tokens"]).reshape(B * L, N)
    dropped = (np.asarray(seen["text"])[..., 0] == NULL).all(axis=1)
    np.testing.assert_array_equal(np.asarray(seen["text"])[~dropped, :, 0], tokens[~dropped])
    assert 0 < dropped.sum() < B * L


@pytest.mark.slow
def test_image_training_leaves_what_images_do_not_use_as_it_is():
    """Temporal layers, injections and the level embedding: no gradient, no decay. All else learns."""
    config = _tiny()
    task = tasks.build(config, "image_denoiser")
    params = jax.jit(task.init)(jax.random.key(0))
    # The last convolution starts at zero and hides all gradients but its own.
    params["unet"]["conv_out"]["kernel"] += 0.1
    frozen = {
        "vae": jax.jit(task.networks.init_vae)(jax.random.key(1)),
        "latent_shift": jnp.zeros(4),
        "latent_scale": jnp.ones(4),
    }
    rng = np.random.default_rng(0)
    batch = {
        "frames": jnp.asarray(rng.integers(0, 256, (4, 2, 16, 16, 3), dtype=np.uint8)),
        "tokens": jnp.asarray(rng.integers(3, 60, (4, 2, 20)), jnp.int32),
    }
    keys = jax.random.split(jax.random.key(3), 4)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, frozen, batch, keys)[0]))(params)
    decayed = {
        partitioning.path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(optim.decay_mask(params, task.no_decay))
    }
    unused = ("temporal", "injection", "cond_down", "level_embedding")
    names = []
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        name = partitioning.path_name(path)
        if any(word in name for word in unused):
            names.append(name)
            assert not np.any(gradient) and not decayed[name], name
        elif name.endswith("proj_out/kernel") or "conv2/kernel" in name:
            assert np.any(gradient), name  # what starts at zero has a gradient; what is behind it has none yet
    assert len(names) > 20


def test_build_reads_the_config():
    config = _tiny()
    config.diffusion.update(first_only_prob=0.125, time_shift=3.0)
    config.train.denoiser.dtype = "bfloat16"
    image, video, denoiser = (tasks.build(config, stage) for stage in ("image_vae", "vae", "denoiser_2"))
    assert not image.temporal and video.temporal and image.fields == ("frames",)
    assert denoiser.stage == "denoiser_2" and (denoiser.first_only_prob, denoiser.time_shift) == (0.125, 3.0)
    assert denoiser.networks.unet.dtype == jnp.bfloat16 and image.networks.vae.dtype == jnp.float32


@pytest.mark.parametrize(
    "on_images,stages,init_from,new",
    [
        ("^unet/", ("image_vae", "vae", "image_denoiser", "denoiser"), "", True),
        ("", ("image_vae", "vae", "image_denoiser", "denoiser"), "", False),
        ("attention|conv", ("image_denoiser", "denoiser"), "", False),  # some of the text encoder learns
        ("^unet/", ("image_denoiser", "denoiser"), "weights.safetensors", False),
        ("^unet/", ("denoiser",), "", False),
    ],
)
def test_a_text_encoder_that_images_left_alone_is_new_to_videos(on_images, stages, init_from, new):
    config = _tiny()
    config.train.update(stages=stages, init_from=init_from)
    config.train.image_denoiser.trainable = on_images
    params = jax.eval_shape(tasks.build(config, "denoiser").init, jax.random.key(0))
    learns = optim.learns(params, tasks.new_layers(config, "denoiser"))
    assert set(jax.tree.leaves(learns["text"])) == {new}
    assert set(jax.tree.leaves(learns["unet"])) == {True, False}


def test_stages_of_shared_and_separate_weights():
    config = _tiny()
    assert lineage.stages(config) == ("image_vae", "vae", "image_denoiser", "denoiser")
    config.mtd.weights = "per_level"
    assert lineage.stages(config) == ("image_vae", "vae", "image_denoiser", "denoiser_0", "denoiser_1", "denoiser_2")
    assert [lineage.section_of(stage) for stage in lineage.stages(config)][2:] == ["image_denoiser"] + ["denoiser"] * 3
