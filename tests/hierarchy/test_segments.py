"""The real networks inside the level program: independence of segments, no collectives, both hand-overs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.hierarchy import generate as generate_lib
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program
from nuwaxl_jax.hierarchy import sample
from nuwaxl_jax.hierarchy import segments
from nuwaxl_jax.hierarchy import strategies

PROMPTS = ["a big blue star jumps at night", "a small red circle stands in the snow"]
FRAMES = 28
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def _speaking(tree, seed):
    """Parameters without the zeros of initialisation, so that every input matters."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return structure.unflatten([np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


@pytest.fixture(scope="module")
def world(toons_presets):
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    networks = networks_lib.build(config)
    bundle = dict(
        vae=_speaking(jax.jit(networks.init_vae)(jax.random.key(0)), 0),
        latent_shift=np.full(4, 0.1, np.float32),
        latent_scale=np.full(4, 0.8, np.float32),
        denoisers=(_speaking(jax.jit(networks.init_denoiser)(jax.random.key(1)), 1),),
    )
    index = (np.arange(FRAMES) * 2 // FRAMES).astype(np.int32)[None]
    return config, networks, bundle, index


def _mesh(count):
    return jax.make_mesh(
        (count, 1, 1),
        ("data", "fsdp", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:count],
    )


def _latents(world, devices=1, **hierarchy):
    config, networks, bundle, index = world
    config = config.copy_and_resolve_references()
    config.hierarchy.update(hierarchy)
    made = sample.generate(config, networks, bundle, PROMPTS, index, mesh=_mesh(devices), progress=False)
    return made.latents


@pytest.fixture(scope="module")
def reference(world):
    return _latents(world)


@pytest.mark.parametrize("devices,chunk", [(1, 0), (1, 2), (8, 0), (8, 16)])
def test_chunks_and_devices_do_not_change_a_bit(world, reference, devices, chunk):
    np.testing.assert_array_equal(_latents(world, devices, chunk=chunk), reference)


def test_prompts_and_noise_reach_the_video(world, reference):
    config, networks, bundle, index = world
    other = sample.generate(config, networks, bundle, PROMPTS[::-1], index, progress=False).latents
    assert np.abs(other - reference).max() > 1e-3
    again = sample.generate(config, networks, bundle, PROMPTS, index, key=jax.random.key(9), progress=False).latents
    assert np.abs(again - reference).max() > 1e-1


def test_pixel_handover_differs_from_latent_handover_below_the_root_alone(world, reference):
    pixel = _latents(world, handover="pixel")
    keyframes = np.arange(0, FRAMES, 9)
    others = np.setdiff1d(np.arange(FRAMES), keyframes)
    assert np.abs(pixel[0, others] - reference[0, others]).max() > 1e-3


def test_the_compiled_level_has_no_collectives(world):
    config, networks, bundle, _ = world
    params = segments.sampling_params(networks, bundle, PROMPTS)
    plan = plan_lib.make_plan(FRAMES, 4, network_depth=3)[-1]
    mesh = _mesh(8)
    spec = generate_lib.level_spec(
        segments.sampler_of(config, networks), plan, plan.num_segments, networks.latent_shape, mesh=mesh, microbatch=1
    )
    text = program.compile_level(spec, params).executable.as_text()
    assert "while" in text  # the sampler's scan is in there
    assert not [name for name in COLLECTIVES if name in text]


def test_sliding_window_makes_the_same_frames_in_more_rounds(world):
    config, networks, bundle, index = world
    config = config.copy_and_resolve_references()
    config.hierarchy.strategy = "autoregressive"
    made = sample.generate(config, networks, bundle, PROMPTS, index, progress=False)
    assert made.latents.shape == (1, FRAMES, *networks.latent_shape)
    assert made.denoiser_calls == 9 * 2  # windows times steps of the finest level
    assert made.serial_depth == 9 * 2


def test_what_must_follow_one_another_depends_on_no_machine(world):
    config, networks, bundle, index = world
    config = config.copy_and_resolve_references()
    one = sample.generate(config, networks, bundle, PROMPTS, index, progress=False)
    config.hierarchy.microbatch = 1
    other = sample.generate(config, networks, bundle, PROMPTS, np.tile(index, (2, 1)), progress=False)
    assert one.serial_depth == other.serial_depth == sum(segments.denoiser_calls(config, n) for n in range(3))
    assert other.denoiser_calls > one.denoiser_calls > one.serial_depth


class Repeating:
    """Networks that predict x0: the mean of a frame's prompt."""

    def __init__(self, diffusion):
        self.diffusion = diffusion

    def context(self, unet, text, cond, cond_mask, levels):
        return text.mean((-2, -1))[:, :, None, None, None]

    def denoise_segment(self, unet, x_t, t, levels, context):
        return jnp.broadcast_to(context, x_t.shape)


@pytest.mark.parametrize("level,per_frame,told", [(0, True, 2), (0, False, 2), (1, True, 2), (1, False, 1)])
def test_one_prompt_a_segment_is_its_first_frames_and_keyframes_keep_theirs(level, per_frame, told):
    networks = Repeating(gaussian.GaussianDiffusion.create(schedule="cosine", num_timesteps=10, prediction="x0"))
    make = segments.make_sample_segments(networks, "ddim", (2, 2), (1.0, 1.0), per_frame=per_frame)
    table = jnp.arange(1.0, 4.0)[:, None, None]  # of prompts [P, 1, 1]
    params = dict(denoisers=({"unet": None},), text=(table,), null_text=(0 * table[0],))
    cond, prompts = jnp.zeros((1, 4, 2, 2, 3)), jnp.array([[2, 0, 0, 2]])
    out = make(params, jax.random.split(jax.random.key(0), 1), cond, cond[..., :1], prompts, level=level)
    expected = [3, 1, 1, 3] if told == 2 else [3, 3, 3, 3]
    np.testing.assert_allclose(out[0].mean((1, 2, 3)), expected, rtol=1e-5)


def test_guidance_of_one_needs_no_second_call_and_zero_is_unconditional(world):
    config, networks, bundle, index = world
    unprompted = segments.make_sample_segments(networks, "ddim", (2, 2, 2), (0.0, 0.0, 0.0), 0.0)
    params = segments.sampling_params(networks, bundle, PROMPTS)
    keys = jax.random.split(jax.random.key(0), 2)
    cond = np.zeros((2, 4, *networks.latent_shape), np.float32)
    run = jax.jit(unprompted, static_argnames="level")
    prompts = [np.full((2, 4), i, np.int32) for i in (0, 1)]
    a, b = (run(params, keys, cond, cond[..., :1], p, level=0) for p in prompts)
    np.testing.assert_array_equal(a, b)


def test_temperature_is_a_levels_own_and_the_windows_apart(world):
    """No noise at the last level: keys that leave the levels above alone leave nothing to it."""
    config, networks, bundle, index = world
    config = config.copy_and_resolve_references()
    config.sampler.update(temperature=(0.0, 0.0, 0.0), window_temperature=1.0)
    seeds = (jax.random.key(1), jax.random.key(2))
    cold = [sample.generate(config, networks, bundle, PROMPTS, index, key=k, progress=False).latents for k in seeds]
    np.testing.assert_array_equal(*cold)
    config.sampler.temperature = (0.0, 0.0, 1.0)
    warm = sample.generate(config, networks, bundle, PROMPTS, index, key=seeds[0], progress=False).latents
    np.testing.assert_array_equal(warm[:, ::3], cold[0][:, ::3])  # the level above stands
    assert np.abs(warm - cold[0]).max() > 1e-2
    config.sampler.temperature = (0.0, 0.0, 0.0)
    config.hierarchy.strategy = "autoregressive"
    one, other = (sample.generate(config, networks, bundle, PROMPTS, index, key=k, progress=False) for k in seeds)
    assert np.abs(one.latents - other.latents).max() > 1e-2
    config.sampler.window_steps = 3
    assert segments.denoiser_calls(config, 2) == 3


@pytest.mark.parametrize("strategy", ["diffusion_over_diffusion", "hierarchy_2"])
def test_a_video_of_one_segment_starts_from_noise_as_a_window_does(world, strategy):
    """Else every seed would make the same video of it."""
    config, networks, bundle, index = world
    config = config.copy_and_resolve_references()
    config.hierarchy.strategy = strategy
    config.sampler.update(temperature=(0.0, 0.0, 0.0), window_temperature=1.0, window_steps=3)
    seeds = (jax.random.key(1), jax.random.key(2))
    make = lambda key: sample.generate(config, networks, bundle, PROMPTS, index[:, :4], key=key, progress=False)
    one, other = (make(key) for key in seeds)
    assert np.abs(one.latents - other.latents).max() > 1e-2 and one.serial_depth == 3
    config.sampler.window_temperature = 0.0
    np.testing.assert_array_equal(*(make(key).latents for key in seeds))
    longer = strategies.plans(strategy, 5, 4, 3, 1)  # of two segments, each with both ends given
    assert not strategies.knows_no_future(strategy, longer, 3)
