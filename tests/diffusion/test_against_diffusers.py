"""Sampling, step by step, against diffusers' schedulers: the same network, start and noise, float32.

A trace is what the network is given at each step, and the result.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.diffusion import samplers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

BETAS = {
    "linear": dict(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear"),
    "scaled_linear": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
}
KINDS = {"eps": "epsilon", "v": "v_prediction"}
SHAPE = (2, 5)


def network(x, t, library):
    """Any smooth function, the same in both libraries."""
    return library.tanh(0.9 * x) + 0.3 * library.cos(0.004 * t + x)


def process(schedule, kind, zero=False):
    return gaussian.GaussianDiffusion.create(
        schedule=schedule, num_timesteps=1000, prediction=kind, zero_terminal_snr=zero
    )


def ours(diffusion, **options):
    """(start, noise of each step, trace), arrays [2, 5]."""
    keys, trace = jax.random.split(jax.random.key(4), SHAPE[0]), []

    def denoise(x, t):
        trace.append(np.asarray(x))
        return network(x, t.astype(jnp.float32)[:, None], jnp)

    with jax.disable_jit():  # a scan is then a loop that can be watched
        result = samplers.sample(denoise, diffusion, keys, SHAPE[1:], **options)
    assert len(trace) == options["steps"]
    draw = lambda i: np.stack([jax.random.normal(jax.random.fold_in(k, i), SHAPE[1:]) for k in keys])
    noise = [draw(i) for i in range(options["steps"])]
    return draw(np.uint32(2**32 - 1)), noise, [*trace, np.asarray(result)]


@pytest.fixture
def compare(equals_original):
    def check(what, made, wanted):
        for one, theirs in zip(made, wanted, strict=True):
            equals_original(f"{what}, each of 10 steps", one, theirs.numpy(), 1e-5)

    return check


pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers hands NumPy its tensors
]

CASES = [
    ("linear", "eps", False, "trailing"),
    ("linear", "v", True, "trailing"),
    ("scaled_linear", "eps", False, "leading"),
    ("scaled_linear", "v", True, "trailing"),
    ("cosine", "v", False, "leading"),
    ("cosine", "v", False, "trailing"),
]


@pytest.mark.parametrize("schedule, kind, zero, spacing", CASES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(schedule, kind, zero, spacing, eta, compare):
    start, noise, made = ours(process(schedule, kind, zero), method="ddim", eta=eta, steps=10, spacing=spacing)
    scheduler = diffusers.DDIMScheduler(
        **BETAS[schedule],
        prediction_type=KINDS[kind],
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero,
        clip_sample=False,
    )
    # In float32 its 1 - alpha - sigma^2 is a rounding error at (nearly) pure noise, at times below 0.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == samplers.timesteps(1000, 10, spacing).tolist()
    x, trace = torch.from_numpy(start), []
    for t, z in zip(scheduler.timesteps, noise):
        trace.append(x)
        x = scheduler.step(network(x, t, torch), t, x, eta=eta, variance_noise=torch.from_numpy(z)).prev_sample
    compare(f"DDIM, eta {eta:g}", made, [*trace, x])


@pytest.mark.parametrize("schedule, kind, zero, spacing", CASES)
def test_ddpm(schedule, kind, zero, spacing, monkeypatch, compare):
    start, noise, made = ours(process(schedule, kind, zero), method="ddpm", steps=10, spacing=spacing)
    scheduler = diffusers.DDPMScheduler(
        **BETAS[schedule],
        prediction_type=KINDS[kind],
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero,
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    x, trace = torch.from_numpy(start), []
    for t, z in zip(scheduler.timesteps, noise):
        given = torch.from_numpy(z)
        monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *_, **__: given)  # noqa: B023
        trace.append(x)
        x = scheduler.step(network(x, t, torch), t, x).prev_sample
    compare("DDPM", made, [*trace, x])


@pytest.mark.parametrize("schedule, kind, zero, spacing", CASES)
def test_dpm_solver(schedule, kind, zero, spacing, compare):
    diffusion = process(schedule, kind, zero)
    if zero:  # diffusers puts 2^-24 in the place of 0, and a long first step in that of an endless one
        diffusion.__dict__["alphas_cumprod"] = np.append(diffusion.alphas_cumprod[:-1], 2.0**-24)
    start, _, made = ours(diffusion, method="dpmpp_2m", steps=10, spacing=spacing)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS[schedule],
        prediction_type=KINDS[kind],
        rescale_betas_zero_snr=zero,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=samplers.timesteps(1000, 10, spacing).tolist())
    x, trace = torch.from_numpy(start), []
    for t in scheduler.timesteps:
        trace.append(x)
        x = scheduler.step(network(x, t, torch), t, x).prev_sample
    compare("DPM-Solver++ 2M", made, [*trace, x])


@pytest.mark.parametrize("schedule, kind, zero, spacing", CASES[:1] + CASES[2:3] + CASES[4:5])
def test_eulers_method(schedule, kind, zero, spacing, compare):
    """Where x / alpha is finite: not from (nearly) pure noise."""
    diffusion = process(schedule, kind, zero)
    start, _, made = ours(diffusion, method="euler", steps=10, spacing=spacing)
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS[schedule], prediction_type=KINDS[kind], timestep_spacing=spacing
    )
    scheduler.set_timesteps(timesteps=samplers.timesteps(1000, 10, spacing).tolist())
    x = torch.from_numpy(start) / np.sqrt(diffusion.alphas_cumprod[int(scheduler.timesteps[0])])  # x / alpha
    trace = []
    for t in scheduler.timesteps:
        trace.append(scheduler.scale_model_input(x, t))
        x = scheduler.step(network(trace[-1], t, torch), t, x).prev_sample
    compare("Euler", made, [*trace, x])
