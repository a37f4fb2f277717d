"""The VAE's objective: latent diffusion's sums, each player's own gradient, the start, and a run that resumes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.models import discriminator
from nuwaxl_jax.models import lpips
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import export
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import steps
from nuwaxl_jax.training import tasks
from nuwaxl_jax.training import vae_objective
from nuwaxl_jax.training import vae_task

B, L, SIDE = 8, 2, 16
VALUES = SIDE * SIDE * 3
KERNEL = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.7]], np.float32)


class LinearVAE:
    """The latent is the picture, the decoder one matrix over colours (at the place of the last layer) and a bias."""

    def init_vae(self, key):
        del key
        return {"decoder": {"conv_out": {"spatial": {"kernel": jnp.asarray(KERNEL)}}}, "bias": jnp.full(3, 0.05)}

    def encode(self, params, frames, temporal=True):
        del params, temporal
        return frames, jnp.full(frames.shape, -30.0)

    def decode(self, params, z, temporal=True):
        del temporal
        return z @ params["decoder"]["conv_out"]["spatial"]["kernel"] + params["bias"]


def _objective(**changes):
    fields = dict(
        reconstruct=jnp.abs,
        perceptual=lpips.LPIPS((3, 4, 4, 4, 4)),
        perceptual_weight=0.7,
        learned_logvar=True,
        discriminator=discriminator.PatchDiscriminator(4, 1),
        gan_weight=0.5,
        gan_start=2,
        frame_size=SIDE,
        optimizers={"logvar": optax.sgd(1e-2), "discriminator": optax.sgd(0.1, momentum=0.5)},
    )
    return vae_objective.VAEObjective(**{**fields, **changes})


def _task(**changes):
    return vae_task.VAETask(LinearVAE(), temporal=False, recon="l1", kl_weight=0.0, objective=_objective(**changes))


def _batch():
    rng = np.random.default_rng(0)
    return {"frames": rng.integers(0, 256, (B, L, SIDE, SIDE, 3), dtype=np.uint8)}


def _keys():
    return jax.random.split(jax.random.key(0), B)


@pytest.fixture(scope="module")
def weights():
    frames = jnp.zeros((1, SIDE, SIDE, 3))
    return jax.device_get(jax.jit(_objective().perceptual.init)(jax.random.key(3), frames, frames)["params"])


@pytest.fixture(scope="module")
def trained():
    """The discriminator away from its start, where it would say nothing, and the log-variance away from 0."""
    params = jax.jit(_objective().init)(jax.random.key(1))["params"]
    return {"logvar": jnp.float32(0.3), "discriminator": jax.tree.map(lambda x: x * 5, params["discriminator"])}


def test_hinge_by_hand():
    real, made = jnp.array([2.0, 0.5, -1.0]), jnp.array([-2.0, 0.0, 1.0])
    assert vae_objective.hinge(real, made) == pytest.approx(0.5 * (2.5 / 3 + 3.0 / 3))
    assert vae_objective.hinge(real + 3, made - 3) == 0.0  # certain enough: nothing to learn


def test_adaptive_weight_by_hand():
    by_nll, by_g = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.1]])
    assert vae_objective.adaptive_weight(by_nll, by_g, 1e4) == pytest.approx(5 / (0.1 + 1e-4), rel=1e-6)
    assert vae_objective.adaptive_weight(by_nll, by_g, 2.0) == 2.0
    assert vae_objective.adaptive_weight(by_nll, 0 * by_g, 1e9) == pytest.approx(5e4, rel=1e-6)


def test_a_learned_log_variance_rests_at_the_log_of_the_error():
    objective = _objective(perceptual=None)
    made, real = jnp.full((1, 4, 4, 3), 0.5), jnp.zeros((1, 4, 4, 3))
    nll = lambda s: objective.nll(made, s, real, None)[0]  # noqa: E731
    assert nll(0.0) == pytest.approx(0.5)
    assert nll(0.3) == pytest.approx(0.5 * np.exp(-0.3) + 0.3)
    assert nll(np.log(0.5)) == pytest.approx(1 + np.log(0.5))
    assert jax.grad(nll)(np.log(0.5)) == pytest.approx(0.0, abs=1e-6)
    assert jax.grad(nll)(0.0) == pytest.approx(1 - 0.5)


def _original(params, trained, weights, real):
    """Latent diffusion's two losses as it sums them over each frame: (generator's, discriminator's, lambda)."""
    objective, last = _objective(), params["decoder"]["conv_out"]["spatial"]["kernel"]
    judge = lambda theta, x: objective.discriminator.apply({"params": theta}, x)  # noqa: E731
    s, theta = trained["logvar"], trained["discriminator"]

    def nll(kernel, bias, s):
        x = real @ kernel + bias
        distance = objective.perceptual.apply({"params": weights}, x, real)[:, None, None, None]
        return jnp.sum((jnp.abs(x - real) + 0.7 * distance) / jnp.exp(s) + s) / len(real)

    g = lambda kernel, bias: -jnp.mean(judge(theta, real @ kernel + bias))  # noqa: E731
    bias = params["bias"]
    norms = [jnp.sqrt(jnp.sum(jax.grad(f)(last) ** 2)) for f in (lambda w: nll(w, bias, s), lambda w: g(w, bias))]
    weight = jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4))
    x = jax.lax.stop_gradient(real @ last + bias)
    d = 0.5 * (jnp.maximum(0, 1 - judge(theta, real)).mean() + jnp.maximum(0, 1 + judge(theta, x)).mean())
    return nll(last, bias, s) + 0.5 * weight * g(last, bias), d, weight


def test_equals_latent_diffusions_sums_and_each_player_has_its_own_gradient(weights, trained):
    task, params, batch = _task(), LinearVAE().init_vae(None), _batch()
    real = jnp.asarray(batch["frames"].reshape(-1, SIDE, SIDE, 3), jnp.float32) / 127.5 - 1

    @jax.jit
    def ours(both, step):
        return jax.value_and_grad(task.loss, has_aux=True)(both, {"lpips": weights, "step": step}, batch, _keys())

    @jax.jit
    def theirs(params, trained):
        generator = lambda p, s: _original(p, trained | {"logvar": s}, weights, real)[0] / VALUES  # noqa: E731
        judge = lambda theta: _original(params, trained | {"discriminator": theta}, weights, real)[1]  # noqa: E731
        loss, by_generator = jax.value_and_grad(generator, argnums=(0, 1))(params, trained["logvar"])
        d, by_judge = jax.value_and_grad(judge)(trained["discriminator"])
        return loss, d, _original(params, trained, weights, real)[2], by_generator, by_judge

    (loss, values), (by_params, by_trained) = ours((params, trained), 2)
    wanted, d, weight, (params_wanted, logvar_wanted), judge_wanted = theirs(params, trained)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)  # noqa: E731
    host = metrics.to_host(values)[0]
    assert host["gan_adaptive"] == pytest.approx(float(weight) / VALUES, rel=1e-4)
    close(loss, wanted)
    jax.tree.map(close, by_params, params_wanted)
    close(by_trained["logvar"], logvar_wanted)
    assert host["gan_discriminator"] == pytest.approx(float(d), rel=1e-5)
    jax.tree.map(close, by_trained["discriminator"], judge_wanted)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_trained))
    terms = {"recon", "lpips", "nll", "logvar", "kl", "psnr"}
    game = {f"gan_{name}" for name in ("generator", "discriminator", "adaptive", "logit_real", "logit_made")}
    assert set(host) == terms | game
    assert host["nll"] == pytest.approx((host["recon"] + 0.7 * host["lpips"]) * np.exp(-0.3) + 0.3, rel=1e-5)

    # A step before the start: no discriminator anywhere, and its terms are not in the log.
    (loss, values), (by_params, by_trained) = ours((params, trained), 1)
    alone = jax.grad(_task(discriminator=None).loss, has_aux=True)
    by_alone, _ = jax.jit(alone)((params, {"logvar": trained["logvar"]}), {"lpips": weights}, batch, _keys())
    assert set(metrics.to_host(values)[0]) == terms
    assert loss == pytest.approx(metrics.to_host(values)[0]["nll"], rel=1e-6)
    jax.tree.map(close, by_params, by_alone[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_trained["discriminator"]))


def test_alone_lpips_trains_nothing_more(weights):
    task = _task(discriminator=None, learned_logvar=False, optimizers={})
    assert task.objective.init(jax.random.key(0)) is None and not task.objective.trains
    loss, values = jax.jit(task.loss)(LinearVAE().init_vae(None), {"lpips": weights}, _batch(), _keys())
    host = metrics.to_host(values)[0]
    assert set(host) == {"recon", "lpips", "nll", "kl", "psnr"}
    assert loss == pytest.approx(host["recon"] + 0.7 * host["lpips"], rel=1e-5)


def _run(count, mesh):
    """(the states before and after each of `count` steps of the linear VAE, without LPIPS, its one program)."""
    task, optimizer = _task(perceptual=None), optim.make_optimizer(learning_rate=1e-2, num_steps=10)
    state = state_lib.create(task, optimizer, jax.random.key(0), mesh, min_size=1)
    batch, seed = partitioning.put_batch(_batch(), mesh), jax.device_put(np.uint32(5), partitioning.replicate(mesh))
    step = steps.make_train_step(task, optimizer, ema_limit=0.9, mesh=mesh, state=state, frozen={})
    step = step.lower(state, {}, batch, seed).compile()
    states = [jax.device_get(state)]
    for _ in range(count):
        state, values = step(state, {}, batch, seed)
        assert metrics.to_host(values)[1] == []
        states.append(jax.device_get(state))
    return states


def test_the_discriminator_rests_until_its_start_in_one_program_and_on_any_devices():
    first, second, third, last = _run(3, partitioning.make_mesh(devices=jax.devices()[:1]))
    resting = lambda state: {k: state.extra[k]["discriminator"] for k in ("params", "opt_state")}  # noqa: E731
    for later in (second, third):
        jax.tree.map(np.testing.assert_array_equal, resting(later), resting(first))
        assert later.extra["params"]["logvar"] != first.extra["params"]["logvar"]
    moved = jax.tree.map(lambda a, b: np.any(a != b), resting(last), resting(third))
    still = [name for name, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
    assert all("logit" in str(name) and "bias" in str(name) for name in still)  # no margin reached: no say on the mean
    assert jax.tree.structure(last.ema_params) == jax.tree.structure(LinearVAE().init_vae(None))
    many = _run(3, partitioning.make_mesh(fsdp=2))[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), last, many)


def test_off_is_what_it_was(toons_presets):
    config = toons_presets.get_config("tiny")
    for stage in config_lib.VAE_STAGES:
        assert vae_objective.build(config, stage) is None
    optimizer, _ = loop.optimizer_of(config.train.image_vae)
    mesh = partitioning.make_mesh(devices=jax.devices()[:1])
    state = state_lib.abstract(tasks.build(config, "image_vae"), optimizer, mesh)
    assert state.extra is None
    assert config_lib.default().vae.gan_weight == config_lib.default().vae.perceptual_weight == 0


@pytest.mark.parametrize(
    "fields, named",
    [
        (dict(logvar="free"), "vae.logvar: unknown value"),
        (dict(gan_weight=-1.0), "vae.gan_weight: -1.0 is negative"),
        (dict(gan_start=(5,)), "vae.gan_start"),
        (dict(gan_weight=0.5, gan_start=(6, 0)), "vae.gan_start: 6 is not before the end of image_vae at 6 steps"),
        (dict(gan_weight=0.5, gan_start=(0, 9)), "vae.gan_start: 9 is not before the end of vae at 6 steps"),
        (dict(gan_weight=0.5), "vae.gan_layers: 3 strided layers leave no patch of a frame of 16 pixels"),
        (dict(gan_layers=0), "vae.gan_layers"),
        (dict(lpips_sha256="abc"), "vae.lpips_sha256: 'abc' is no SHA-256"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(toons_presets, fields, named):
    config = toons_presets.get_config("tiny")
    config.vae.gan_layers = 3 if fields == dict(gan_weight=0.5) else 1
    config.vae.update(fields)
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate_training(config)
    message = str(error.value)
    assert message.startswith(f"config.{named}") and "\n" not in message and ";" in message


class Clips:
    """Batch k is drawn from the seed k."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.position += 1
        frames = rng.integers(0, 256, (B, L, SIDE, SIDE, 3), dtype=np.uint8)
        return {"frames": frames, "episode": np.arange(B)}

    def get_state(self):
        return {"next_batch": self.position}

    def set_state(self, state):
        self.position = state["next_batch"]


def test_a_run_with_a_discriminator_resumes_to_the_same_bytes(linear, tmp_path):
    """Stopped before the start of the discriminator and after it; gradients accumulated."""

    def train(workdir, interrupt):
        optimizers = {"logvar": optax.adam(1e-2), "discriminator": optax.adam(1e-2, 0.5, 0.9)}
        return loop.run_stage(
            _task(perceptual=None, optimizers=optimizers),
            {},
            Clips(),
            linear.settings(num_steps=5, log_every=1, accumulate=2),
            str(workdir / "vae"),
            mesh=partitioning.make_mesh(devices=jax.devices()[:1]),
            seed=11,
            config={},
            interrupt=interrupt,
        )

    whole = train(tmp_path / "a", interrupts.Interrupt())
    for step in (1, 2):
        with pytest.raises(SystemExit):
            train(tmp_path / "b", linear.StopAfter(step))
    resumed = train(tmp_path / "b", interrupts.Interrupt())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole))
    assert whole.extra["opt_state"]["discriminator"][0].count == 3  # of its own steps
    lines = [json.loads(line) for line in (tmp_path / "a" / "vae" / "metrics.jsonl").read_text().splitlines()]
    assert [("gan_discriminator" in line) for line in lines] == [False, False, True, True, True]
    # What sampling and export read holds the autoencoder alone.
    averages = checkpoint.restore_ema(tmp_path / "a", "vae")
    assert jax.tree.structure(averages) == jax.tree.structure(LinearVAE().init_vae(None))


def _whole(toons_presets):
    """The tiny preset with all of the objective, but for the weights of LPIPS."""
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    config.vae.update(perceptual_weight=1.0, logvar="learned")
    config.vae.update(gan_weight=0.5, gan_start=(1, 3), gan_channels=4, gan_layers=2)
    return config_lib.validate_training(config)


def test_both_stages_read_the_config_and_the_real_networks_last_layer(toons_presets):
    config = _whole(toons_presets)
    for stage, start, length in (("image_vae", 1, 1), ("vae", 3, 4)):
        task = tasks.build(config, stage)
        assert (task.objective.gan_start, task.objective.gan_weight) == (start, 0.5)
        assert task.objective.lpips_missing and task.objective.perceptual is None
        extra = jax.eval_shape(task.objective.init, jax.random.key(0))
        params = jax.eval_shape(task.init, jax.random.key(0))
        inputs = (params, extra["params"]), {"step": jnp.int32(0)}
        batch = {"frames": jax.ShapeDtypeStruct((2, length, 16, 16, 3), jnp.uint8)}
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        loss, values = jax.eval_shape(task.loss, *inputs, batch, keys)
        assert loss.shape == () and {"gan_adaptive", "logvar", "lpips_none"} <= set(values)


@pytest.mark.slow
def test_a_real_run_is_labelled_where_it_lacks_lpips_and_keeps_the_discriminator_to_itself(
    toons_presets, tmp_path, capsys
):
    config = _whole(toons_presets)
    config.train.stages = ("image_vae",)
    config.train.image_vae.update(num_steps=2, batch_size=8, log_every=1)
    loop.train(config, str(tmp_path))
    err = capsys.readouterr().err
    assert err.count("lpips: none. vae.perceptual_weight is 1.0 but vae.lpips_weights is empty") == 1
    step = pathlib.Path(checkpoint.stage_directory(tmp_path, "image_vae")) / "2"
    meta = json.loads((step / "meta" / "metadata").read_text())
    assert "extra/params/logvar" in meta["fingerprints"]["state"]
    assert any("extra/opt_state/discriminator" in name for name in meta["fingerprints"]["state"])
    assert all("extra" not in name for name in meta["fingerprints"]["ema"])
    assert meta["config"]["vae"]["lpips_sha256"] == "none"
    lines = [json.loads(line) for line in (tmp_path / "image_vae" / "metrics.jsonl").read_text().splitlines()]
    assert [("gan_discriminator" in line, line["lpips_none"]) for line in lines] == [(False, 1.0), (True, 1.0)]
    assert export.read_config(str(tmp_path)).vae.lpips_sha256 == "none"
