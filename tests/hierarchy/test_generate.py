"""Levels of segments: the same bits however they are cut, borders shared, nothing crosses a segment."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.hierarchy import autoregressive
from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import generate
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program
from nuwaxl_jax.hierarchy import strategies

LENGTH = 8
LATENT = (4, 4, 3)
WIDTH = 48  # h w c


def sample_segments(params, keys, cond, cond_mask, prompt_index, *, level):
    """A sampler with what could round differently: noise, matrix products, a softmax over frames, a scan."""
    noise = jax.vmap(lambda key: jax.random.normal(key, cond.shape[1:]))(keys)
    flat = lambda x: x.reshape(*x.shape[:2], -1)  # [n, L, h w c]
    text = params["text"][prompt_index]  # [n, L, D]

    def step(x, _):
        h = jnp.concatenate([flat(x), flat(cond), flat(cond_mask), text], -1) @ params["in"]
        attention = jax.nn.softmax(jnp.einsum("nld,nmd->nlm", h, h) / 64.0)
        h = jnp.tanh(jnp.einsum("nlm,nmd->nld", attention, h)) @ params["out"]
        return 0.9 * x + 0.1 * h.reshape(x.shape) + 0.01 * level, None

    return jax.lax.scan(step, noise, None, length=3)[0]


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    shapes = {"text": (16, 8), "in": (2 * WIDTH + 16 + 8, 64), "out": (64, WIDTH)}
    return {name: jnp.asarray(random.normal(size=shape) / 4, jnp.float32) for name, shape in shapes.items()}


def make_mesh(data=1, fsdp=1, model=1):
    return jax.make_mesh(
        (data, fsdp, model),
        ("data", "fsdp", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: data * fsdp * model],
    )


def prompts(videos, frames):
    return np.random.default_rng(1).integers(0, 16, (8, 256)).astype(np.int32)[:videos, :frames]


def run(params, num_frames=50, videos=2, *, seed=3, prompt_index=None, **kwargs):
    plans = plan_lib.make_plan(num_frames, LENGTH)
    prompt_index = prompts(videos, num_frames) if prompt_index is None else prompt_index
    kwargs.setdefault("microbatch", 2)
    return generate.generate(sample_segments, params, plans, jax.random.key(seed), prompt_index, LATENT, **kwargs)


@pytest.fixture(scope="module")
def reference(params):
    return run(params)


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
def test_chunks_do_not_change_a_bit(params, reference, chunk):
    result = run(params, chunk=chunk)
    np.testing.assert_array_equal(result.latents, reference.latents)
    assert [timing["calls"] for timing in result.timings] == [-(-n // min(n, -(-chunk // 2) * 2)) for n in (2, 14)]


@pytest.mark.parametrize("shape, chunk", [((2, 1, 1), 9), ((4, 2, 1), 0), ((4, 2, 1), 9), ((2, 2, 2), 0)])
def test_devices_do_not_change_a_bit(params, reference, shape, chunk):
    result = run(params, mesh=make_mesh(*shape), chunk=chunk)
    np.testing.assert_array_equal(result.latents, reference.latents)


def test_no_value_of_the_sampler_is_lost(params, reference):
    """The program's segments are the sampler's own, called plainly with the documented keys and inputs."""
    plan = plan_lib.make_plan(50, LENGTH)[1]
    video, segment = 1, 4
    frame, given = plan.frame_index[segment], plan.given[segment]
    key = jax.random.key(3)
    for number in (video, 1, segment):
        key = jax.random.fold_in(key, number)
    mask = jnp.broadcast_to(given[:, None, None, None], (LENGTH, *LATENT[:2], 1)).astype(jnp.float32)
    cond = reference.latents[video, frame] * mask
    prompt = prompts(2, 50)[video, frame]
    x0 = sample_segments(params, key[None], cond[None], mask[None], prompt[None], level=1)[0]
    np.testing.assert_allclose(reference.latents[video, frame][~given], x0[~given], atol=1e-5)
    assert np.std(reference.latents) > 0.5


def test_segments_made_alone_in_any_order_are_the_same(params, reference):
    plan = plan_lib.make_plan(50, LENGTH)[1]
    order = [6, 2, 0, 5, 1, 3, 4]
    for segments, videos in [(order, [1, 0]), ([5], [1])]:
        frames = frames_lib.FrameLatents(2, plan_lib.make_plan(50, LENGTH), LATENT)
        border = plan.frame_index[plan.given]
        frames.write(
            np.arange(2), np.tile(border, (2, 1)), np.ones((2, len(border)), bool), reference.latents[:, border]
        )
        generate.generate_level(
            sample_segments, params, plan, jax.random.key(3), frames, prompts(2, 50),
            segments=segments, videos=videos, microbatch=2,
        )  # fmt: skip
        for video in videos:
            index = plan.frame_index[segments]
            np.testing.assert_array_equal(frames.array[video, index], reference.latents[video, index])


def test_given_frames_are_kept_and_borders_are_shared(params):
    plans = plan_lib.make_plan(50, LENGTH)
    frames = frames_lib.FrameLatents(1, plans, LATENT)
    for plan in plans:
        before, done = frames.array.copy(), frames.done.copy()
        generate.generate_level(sample_segments, params, plan, jax.random.key(0), frames, prompts(1, 50), microbatch=2)
        np.testing.assert_array_equal(frames.array[done], before[done])
    spec = generate.level_spec(sample_segments, plans[1], 7, LATENT, mesh=program.default_mesh(), microbatch=2)
    items = generate._inputs(plans[1], frames, prompts(1, 50), np.zeros(7, np.int32), np.arange(7, dtype=np.int32))
    level_fn = program.compile_level(spec, params)
    out = level_fn.fetch(level_fn(program.place_params(params, spec.mesh), jax.random.key(0), 1, items), 7)
    np.testing.assert_array_equal(out, frames.array[0, plans[1].frame_index])  # the program gives them back too
    np.testing.assert_array_equal(out[:-1, -1], out[1:, 0])


def test_videos_do_not_touch_each_other(params, reference):
    alone = run(params, videos=1, prompt_index=prompts(2, 50)[:1])
    np.testing.assert_array_equal(alone.latents[0], reference.latents[0])
    changed = prompts(2, 50)
    changed[1] = (changed[1] + 1) % 16
    result = run(params, prompt_index=changed)
    np.testing.assert_array_equal(result.latents[0], reference.latents[0])
    assert (result.latents[1] != reference.latents[1]).any()


def test_a_prompt_reaches_its_own_frames_alone(params, reference):
    """Frame 10 is an inner frame of segment 1 at the finest level."""
    changed = prompts(2, 50)
    changed[0, 10] = (changed[0, 10] + 1) % 16
    differs = (run(params, prompt_index=changed).latents[0] != reference.latents[0]).any(axis=(1, 2, 3))
    assert set(np.flatnonzero(differs)) == set(range(8, 14))


def test_other_key_other_video(params, reference):
    assert (run(params, seed=4).latents != reference.latents).mean() > 0.99
    assert (reference.latents[0, :7] != reference.latents[0, 7:14]).mean() > 0.99


@pytest.mark.parametrize("shape, level", [((4, 2, 1), 0), ((4, 2, 1), 1), ((2, 2, 2), 1)])
def test_a_level_is_one_program_without_collectives(params, shape, level):
    mesh = make_mesh(*shape)
    plan = plan_lib.make_plan(50, LENGTH)[level]
    spec = generate.level_spec(sample_segments, plan, 2 * plan.num_segments, LATENT, mesh=mesh, microbatch=1)
    compiled = program.compile_level(spec, params)
    text = compiled.executable.as_text()
    assert "while" in text
    for collective in ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"):
        assert collective not in text
    shardings = compiled.executable.output_shardings
    assert shardings.spec == jax.P(None, ("data", "fsdp"))


def test_params_sharded_for_training_are_gathered_and_model_shards_kept(params, reference):
    mesh = make_mesh(2, 2, 2)
    specs = {"text": jax.P(("data", "fsdp")), "in": jax.P("fsdp", "model"), "out": jax.P("model", None)}
    sharded = {name: jax.device_put(x, jax.NamedSharding(mesh, specs[name])) for name, x in params.items()}
    placed = program.place_params(sharded, mesh)
    assert placed["in"].sharding.spec == jax.P(None, ("model",))
    assert placed["text"].sharding.is_fully_replicated
    result = run(sharded, mesh=mesh)
    np.testing.assert_allclose(result.latents, reference.latents, atol=1e-4)  # sums over 'model' round differently


def test_handover_gets_the_given_frames_and_their_mask(params):
    seen = collections.defaultdict(list)

    def handover(params, cond, cond_mask):
        jax.debug.callback(lambda c, m: seen["calls"].append((np.array(c), np.array(m))), cond, cond_mask)
        return cond + params["text"][0, 0] * (1 - cond_mask) + cond_mask

    def echo(params, keys, cond, cond_mask, prompt_index, *, level):
        del params, cond_mask, prompt_index, level
        return cond + jax.vmap(lambda key: jax.random.normal(key, cond.shape[1:]))(keys)

    plans = plan_lib.make_plan(15, LENGTH)  # levels of 1 and 2 segments
    result = generate.generate(
        echo, params, plans, jax.random.key(0), prompts(1, 15), LATENT, microbatch=2, handover=handover
    )
    jax.effects_barrier()
    (cond0, mask0), (cond1, mask1) = seen["calls"]
    assert not cond0.any() and not mask0.any()
    assert mask1.shape == (2, LENGTH, *LATENT[:2], 1)
    np.testing.assert_array_equal(mask1[..., 0, 0, 0], plans[1].given)
    np.testing.assert_array_equal(cond1[:, [0, -1]], result.frames.array[0, :][[[0, 7], [7, 14]]])
    assert not cond1[:, 1:-1].any()
    # What the handover returned reaches the sampler, and the given frames stay as they were.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1), 1)
    noise = jax.random.normal(key, (LENGTH, *LATENT))
    np.testing.assert_allclose(result.latents[0, 8:14], noise[1:-1] + params["text"][0, 0], atol=1e-6)


@pytest.mark.parametrize("num_frames, length, segments", [(1024, 16, 75), (226, 16, 16), (50, 8, 8), (5, 8, 1)])
def test_counts(num_frames, length, segments):
    levels = []

    def noise(params, keys, cond, cond_mask, prompt_index, *, level):
        del params, cond_mask, prompt_index
        levels.append(level)
        return jax.vmap(lambda key: jax.random.normal(key, cond.shape[1:]))(keys)

    plans = plan_lib.make_plan(num_frames, length, network_depth=3)
    result = generate.generate(
        noise, {}, plans, jax.random.key(0), np.zeros((1, num_frames), np.int32), (1, 1, 2),
        mesh=make_mesh(8), microbatch=3,
    )  # fmt: skip
    assert result.latents.shape == (1, num_frames, 1, 1, 2)
    assert sum(timing["segments"] for timing in result.timings) == segments
    assert result.calls == len(plans)
    assert levels == [plan.network_level for plan in plans]  # traced once a level
    assert np.unique(result.latents, axis=1).shape == result.latents.shape  # every frame has its own noise


def test_progress_and_timings(params):
    calls = []
    result = run(params, chunk=4, progress=lambda *args: calls.append(args))
    assert [call[:3] for call in calls] == [(0, 2, 2), (1, 4, 14), (1, 8, 14), (1, 12, 14), (1, 14, 14)]
    assert [(t["level"], t["stride"], t["segments"], t["calls"], t["rounds"]) for t in result.timings] == [
        (0, 7, 2, 1, 1),
        (1, 1, 14, 4, 7),
    ]
    assert all(t["seconds"] > 0 for t in result.timings)


def test_programs_compiled_ahead_are_used_and_others_refused(params, reference):
    plans = plan_lib.make_plan(50, LENGTH)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    futures = generate.compile_ahead(sample_segments, shapes, plans, 2, LATENT, microbatch=2)
    compiled = {level: future.result() for level, future in futures.items()}
    np.testing.assert_array_equal(run(params, compiled=compiled).latents, reference.latents)
    np.testing.assert_array_equal(run(params, compiled=futures).latents, reference.latents)
    with pytest.raises(ValueError, match="compiled for another rounds"):
        run(params, compiled=compiled, chunk=4)
    with pytest.raises(ValueError, match="compiled for another mesh"):
        run(params, videos=4, compiled=compiled, mesh=make_mesh(2))


def test_a_second_run_compiles_nothing(params):
    traces = []

    def counted(*args, **kwargs):
        traces.append(1)
        return sample_segments(*args, **kwargs)

    for seed in (0, 1):
        generate.generate(
            counted, params, plan_lib.make_plan(50, LENGTH), jax.random.key(seed), prompts(1, 50), LATENT, microbatch=2
        )
    assert len(traces) == 2


@pytest.mark.parametrize(
    "items, devices, microbatch, said",
    [
        (225, 256, 5, "fill 45 of 256 devices.*microbatch=1 fills 225"),
        (225, 64, 5, "fill 45 of 64 devices.*microbatch=3 fills 64"),
        (225, 45, 5, None),  # all have some
        (225, 2, 5, None),
        (1, 256, 1, None),  # nothing can be shared out
        (15, 256, 1, None),
    ],
)
def test_devices_without_segments_of_their_own_are_explained(items, devices, microbatch, said):
    line = program.idle_devices(items, devices, microbatch)
    assert re.search(said, line) if said else line == ""


def test_microbatch_per_level(params):
    result = run(params, microbatch=[1, 7])
    assert [timing["rounds"] for timing in result.timings] == [2, 2]
    with pytest.raises(ValueError, match="microbatch has 3 entries for 2 levels"):
        run(params, microbatch=[1, 2, 3])


def test_mistakes_are_named(params):
    plans = plan_lib.make_plan(50, LENGTH)
    with pytest.raises(ValueError, match="prompt_index has 51 frames"):
        generate.generate(sample_segments, params, plans, jax.random.key(0), prompts(1, 51), LATENT)
    with pytest.raises(ValueError, match="prompt_index has 43 frames"):
        generate.generate(sample_segments, params, plans, jax.random.key(0), prompts(1, 43), LATENT)
    with pytest.raises(ValueError, match="prompt_index must be integers"):
        run(params, prompt_index=np.zeros((1, 50)))
    with pytest.raises(ValueError, match="key must be one typed key"):
        generate.generate(sample_segments, params, plans, jax.random.PRNGKey(0), prompts(1, 50), LATENT)
    with pytest.raises(ValueError, match="chunk must be"):
        run(params, chunk=-1)
    with pytest.raises(ValueError, match="microbatch must be"):
        run(params, microbatch=0)
    with pytest.raises(ValueError, match=r"add \['fsdp'\]"):
        run(params, mesh=jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    frames = frames_lib.FrameLatents(1, plans, LATENT)
    level = lambda **kwargs: generate.generate_level(
        sample_segments, params, plans[1], jax.random.key(0), frames, prompts(1, 50), **kwargs
    )
    with pytest.raises(ValueError, match="frame 0 of video 0 is not made yet"):
        level()
    with pytest.raises(ValueError, match="segments must be"):
        level(segments=[7])
    with pytest.raises(ValueError, match="videos must be"):
        level(videos=[])


def test_a_segment_that_is_not_finite_is_named():
    def broken(params, keys, cond, cond_mask, prompt_index, *, level):
        del params, keys, cond_mask
        return cond + jnp.where((prompt_index == 9)[..., None, None, None] & (level == 1), jnp.nan, 0.0)

    prompt_index = np.zeros((2, 50), np.int32)
    prompt_index[1, 24] = 9
    with pytest.raises(FloatingPointError, match="level 1, segment 3 of video 1 is not finite"):
        plans = plan_lib.make_plan(50, LENGTH)
        generate.generate(broken, {}, plans, jax.random.key(0), prompt_index, LATENT, microbatch=2)


def sliding(params, num_frames=22, videos=2, overlap=1, *, prompt_index=None, **kwargs):
    plan = plan_lib.autoregressive_plan(num_frames, LENGTH, overlap, network_level=2)
    prompt_index = prompts(videos, num_frames) if prompt_index is None else prompt_index
    return autoregressive.generate_autoregressive(
        sample_segments, params, plan, jax.random.key(0), prompt_index, LATENT, **kwargs
    )


def test_sliding_window_makes_the_same_frames_in_serial_calls():
    seen = []

    def noise(params, keys, cond, cond_mask, prompt_index, *, level):
        assert level == 2
        jax.debug.callback(lambda m: seen.append(np.array(m)[..., 0, 0, 0]), cond_mask)
        return jax.vmap(lambda key: jax.random.normal(key, cond.shape[1:]))(keys) + prompt_index[..., None, None, None]

    prompt_index = np.broadcast_to(np.arange(226, dtype=np.int32) * 100, (2, 226))
    plan = plan_lib.autoregressive_plan(226, 16, 1, network_level=2)
    result = autoregressive.generate_autoregressive(
        noise, {}, plan, jax.random.key(0), prompt_index, (1, 1, 2), microbatch=2
    )
    jax.effects_barrier()
    assert result.latents.shape == (2, 226, 1, 1, 2)
    assert result.calls == 15 and len(seen) == 15
    assert not seen[0].any() and all((mask == (np.arange(16) < 1)).all() for mask in seen[1:])
    np.testing.assert_allclose(result.latents[..., 0, 0, 0], prompt_index, atol=6)  # each frame its own prompt


def test_sliding_window_continues_from_the_frames_before(params):
    whole, start = sliding(params), sliding(params, num_frames=15)
    np.testing.assert_array_equal(whole.latents[:, :15], start.latents)
    other = prompts(2, 22)
    other[0, 3] = (other[0, 3] + 1) % 16  # in the first window: everything after it changes
    differs = (sliding(params, prompt_index=other).latents != whole.latents).any(axis=(2, 3, 4))
    assert differs[0].all() and not differs[1].any()


@pytest.mark.parametrize("kwargs", [dict(chunk=1), dict(mesh="4x2"), dict(compiled=True)])
def test_sliding_window_does_not_depend_on_chunks_or_devices(params, kwargs):
    kwargs = dict(kwargs)
    if "mesh" in kwargs:
        kwargs["mesh"] = make_mesh(4, 2)
    if "compiled" in kwargs:
        plan = plan_lib.autoregressive_plan(22, LENGTH, 3, network_level=2)
        kwargs["compiled"] = autoregressive.compile_ahead(sample_segments, params, plan, 3, LATENT)
    np.testing.assert_array_equal(
        sliding(params, videos=3, overlap=3, **kwargs).latents, sliding(params, videos=3, overlap=3).latents
    )


def test_keyframes_by_windows_and_gaps_at_once_keep_the_keyframes(params):
    plans = strategies.plans("hierarchy_2", 50, LENGTH, 3, 2)
    made = autoregressive.generate_autoregressive(
        sample_segments, params, plans, jax.random.key(0), prompts(2, 50), LATENT, microbatch=(1, 2)
    )
    assert made.latents.shape == (2, 50, *LATENT)
    assert [timing["segments"] for timing in made.timings] == [2 * 1, 2 * 7]
    again = frames_lib.FrameLatents(2, plans, LATENT)
    keyframes = np.isin(again.frame_ids, plans[0].frame_index)
    again.array[:, keyframes], again.done[:, keyframes] = made.frames.array[:, keyframes], True
    generate.generate_level(sample_segments, params, plans[1], jax.random.key(0), again, prompts(2, 50), microbatch=2)
    np.testing.assert_array_equal(again.array[:, :50], made.latents)  # gaps follow from keyframes alone
