"""The programs of a config, ready to be compiled for any devices, with nothing allocated.

    train/<stage>     the step that `training.loop` runs, for each stage of config.train.stages
    sample/level_<k>  the call that `hierarchy.generate` makes for level k (sample/windows: of a sliding window)
    decode            the window of frames that `hierarchy.decode` turns into pixels, on one device

Arguments are ShapeDtypeStructs with the shardings that a run would give them; the functions are those of the run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.hierarchy import decode as decode_lib
from nuwaxl_jax.hierarchy import generate as generate_lib
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program as program_lib
from nuwaxl_jax.hierarchy import sample as sample_lib
from nuwaxl_jax.hierarchy import segments as segments_lib
from nuwaxl_jax.models import lpips
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import tasks

Params = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
      name: see the module.
      settings: what of the config decides its size, for the report.
      held: kind -> tree of ShapeDtypeStructs with shardings: all that lies on the devices during a call.
      compile: makes the executable.
      rounds: how often its loop of unknown length runs in a full call; 1 where it has none.
    """

    name: str
    settings: dict[str, Any]
    held: dict[str, Any]
    compile: Callable[[], jax.stages.Compiled]
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class _AnyTokens:
    """In place of a tokenizer without its vocabulary: of the null prompt a program knows the values, not its cost."""

    vocab_size: int
    max_tokens: int

    def encode(self, caption: str) -> np.ndarray:
        del caption
        return np.zeros(self.max_tokens, np.int32)

    def encode_batch(self, captions: list[str]) -> np.ndarray:
        return np.zeros((len(captions), self.max_tokens), np.int32)


def device_bytes(tree: Any) -> float:
    """Bytes of a tree of ShapeDtypeStructs that one device holds, without padding."""

    def one(leaf: Any) -> float:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return math.prod(shape) * jnp.dtype(leaf.dtype).itemsize

    return float(sum(one(leaf) for leaf in jax.tree.leaves(tree)))


def with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The tree's shapes and dtypes, all with one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _without_vocabulary(config: ml_collections.ConfigDict, networks: networks_lib.Networks) -> networks_lib.Networks:
    if config.text.tokenizer != "clip_bpe" or config.text.vocabulary:
        return networks
    text = config.text
    return dataclasses.replace(networks, tokenizer=_AnyTokens(text.vocab_size, text.max_tokens))


def networks_of(config: ml_collections.ConfigDict) -> networks_lib.Networks:
    """The networks that sampling builds, whether or not the tokenizer's vocabulary is there."""
    return _without_vocabulary(config, networks_lib.build(config))


def _bundle(config: ml_collections.ConfigDict, networks: networks_lib.Networks) -> Params:
    """Shapes of everything that sampling needs, see `networks`."""
    key = jax.random.key(0)
    denoiser = jax.eval_shape(networks.init_denoiser, key)
    channel = jax.ShapeDtypeStruct((networks.latent_shape[-1],), jnp.float32)
    return dict(
        vae=jax.eval_shape(networks.init_vae, key),
        latent_shift=channel,
        latent_scale=channel,
        denoisers=(denoiser,) * (config.hierarchy.depth if config.mtd.weights == "per_level" else 1),
    )


def _batch(config: ml_collections.ConfigDict, task: Any, settings: Any, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch, as `data.pipeline.make_iterator` yields it."""
    size, length, side = settings.batch_size, settings.clip_length, config.data.frame_size
    fields = {
        "frames": ((size, length, side, side, 3), jnp.uint8),
        "tokens": ((size, length, config.text.max_tokens), jnp.int32),
        "level": ((size,), jnp.int32),
    }
    if "moments" in task.fields:
        moments = _moments(task, length)
        fields |= {
            "moments": ((size, *moments), jnp.float32),
            "masked": ((size, 2, *moments), jnp.float32),
            "text": ((size, length, config.text.max_tokens, config.text.width), jnp.dtype(settings.dtype)),
        }
    sharding = partitioning.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*fields[name], sharding=sharding) for name in task.fields}


def _moments(task: Any, length: int) -> tuple[int, ...]:
    """Shape of a clip's kept moments, [l, h, w, 2 c]."""
    height, width, channels = task.networks.latent_shape
    return length, height, width, 2 * channels


def _frozen(stage: str, task: Any, length: int) -> dict[str, Any]:
    """Shapes of what `training.lineage.frozen_of` would read, for clips of `length` frames."""
    key = jax.random.key(0)
    if lineage.section_of(stage) in ("image_denoiser", "denoiser"):
        channel = jax.ShapeDtypeStruct((task.networks.latent_shape[-1],), jnp.float32)
        frozen = dict(vae=jax.eval_shape(task.networks.init_vae, key), latent_shift=channel, latent_scale=channel)
        if "masked" in task.fields:
            frozen["blank"] = jax.ShapeDtypeStruct(_moments(task, length), jnp.float32)
        return frozen
    if task.objective is None or task.objective.perceptual is None:
        return {}
    image = jnp.zeros((1, lpips.MIN_SIZE, lpips.MIN_SIZE, 3))
    return dict(lpips=jax.eval_shape(task.objective.perceptual.init, key, image, image)["params"])


def _task(config: ml_collections.ConfigDict, stage: str) -> Any:
    """The stage's task; with LPIPS where the config asks for it, wherever its weights are."""
    if config.vae.perceptual_weight > 0 and not config.vae.lpips_weights:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.vae.lpips_weights = "elsewhere"
    task = tasks.build(config, stage)
    return dataclasses.replace(task, networks=_without_vocabulary(config, task.networks))


def training_step(config: ml_collections.ConfigDict, stage: str, mesh: jax.sharding.Mesh) -> Program:
    """The training step of a stage.

    Raises:
      ValueError: a batch that the mesh does not divide.
    """
    section = lineage.section_of(stage)
    settings = config.train[section]
    micro = settings.batch_size // settings.accumulate
    partitioning.batch_size_divides(mesh, micro, f"train.{section}.batch_size / accumulate")
    task = _task(config, stage)
    optimizer, schedule = loop.optimizer_of(settings, task.no_decay, mesh, task.new_layers)
    state = state_lib.abstract(task, optimizer, mesh)
    frozen = with_sharding(_frozen(stage, task, settings.clip_length), partitioning.replicate(mesh))
    batch = _batch(config, task, settings, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return Program(
        name=f"train/{section}",
        settings=dict(
            mesh=dict(mesh.shape),
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            clips_a_device=micro / shards,
            clip_length=settings.clip_length,
            dtype=settings.dtype,
            optimizer=settings.optimizer,
            remat=config["unet" if section.endswith("denoiser") else "vae"].remat,
            parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        ),
        held=dict(
            parameters=state.params,
            average=state.ema_params,
            optimizer=state.opt_state,
            extra=(state.step, state.extra),
            frozen=frozen,
            batch=batch,
        ),
        compile=lambda: (
            loop.trace_step(task, optimizer, schedule, settings, mesh, state, frozen, batch).lower().compile()
        ),
    )


def sampling_levels(
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    num_frames: int = 0,
    num_videos: int = 1,
    num_prompts: int = 1,
    networks: networks_lib.Networks | None = None,
) -> list[Program]:
    """The calls of each level, root first, or of a sliding window.

    Args:
      num_frames: of the video; 0 is the full tree.
      num_prompts: different ones of the story.
      networks: of `networks_of`; None builds them.
    """
    networks = networks_of(config) if networks is None else networks
    plans = sample_lib.make_plans(config, num_frames or config_lib.window_frames(config))
    arguments = sample_lib.level_arguments(config, networks, plans)
    prompts = [""] * num_prompts
    params = jax.eval_shape(lambda b: segments_lib.sampling_params(networks, b, prompts), _bundle(config, networks))
    params = program_lib.abstract_params(params, mesh)
    out = []
    for plan, microbatch in zip(plans, arguments["microbatch"]):
        spec = generate_lib.level_spec(
            segments_lib.sampler_of(config, networks, plans),
            plan,
            num_videos * (1 if plan.sequential else plan.num_segments),
            networks.latent_shape,
            mesh=mesh,
            **arguments | dict(microbatch=microbatch),
        )
        out.append(_level(config, plan, spec, params, _name(plan)))
    return out


def _name(plan: plan_lib.LevelPlan) -> str:
    return "sample/windows" if plan.sequential else f"sample/level_{plan.level}"


def _read_of(config: ml_collections.ConfigDict, plan: plan_lib.LevelPlan, params: Params) -> dict[str, Any]:
    """What of the parameters lies on the devices: what the level reads; of a sliding window everything."""
    vae = params["vae"], params["latent_shift"], params["latent_scale"]
    if config.hierarchy.strategy in ("autoregressive", "hierarchy_2"):
        return dict(denoiser=params["denoisers"], vae=vae, text=(params["text"], params["null_text"]))
    which = plan.network_level if len(params["denoisers"]) > 1 else 0
    return dict(
        denoiser=params["denoisers"][which]["unet"],
        vae=vae if config.hierarchy.handover == "pixel" else (),
        text=(params["text"][which], params["null_text"][which]),
    )


def _level(
    config: ml_collections.ConfigDict, plan: plan_lib.LevelPlan, spec: program_lib.LevelSpec, params: Params, name: str
) -> Program:
    steps, _ = segments_lib.steps_and_temperature(config, (plan,))
    items = program_lib.abstract_items(spec)
    return Program(
        name=name,
        settings=dict(
            mesh=dict(spec.mesh.shape),
            stride=plan.stride,
            segments=plan.num_segments,
            segments_a_call=spec.capacity,
            rounds=spec.rounds,
            microbatch=spec.microbatch,
            segment_length=spec.segment_length,
            steps=steps[plan.network_level],
            guidance=float(config.sampler.guidance[plan.network_level]),
            handover=config.hierarchy.handover,
        ),
        held=_read_of(config, plan, params) | dict(segments=items),
        compile=lambda: program_lib.compile_level(spec, params).executable,
        rounds=spec.rounds,
    )


def decoding(
    config: ml_collections.ConfigDict,
    device: Any,
    *,
    num_frames: int = 0,
    networks: networks_lib.Networks | None = None,
) -> Program:
    """One window of frames on one device."""
    networks = networks_of(config) if networks is None else networks
    length = min(decode_lib.WINDOW, num_frames or config_lib.window_frames(config))
    sharding = jax.sharding.SingleDeviceSharding(device)
    bundle = _bundle(config, networks)
    vae = with_sharding({k: bundle[k] for k in ("vae", "latent_shift", "latent_scale")}, sharding)
    latents = jax.ShapeDtypeStruct((1, length, *networks.latent_shape), jnp.float32, sharding=sharding)
    return Program(
        name="decode",
        settings=dict(frames=length, frame_size=config.data.frame_size),
        held=dict(vae=vae, latents=latents),
        compile=lambda: decode_lib.decoder(networks).lower(vae, latents).compile(),
    )


def names(config: ml_collections.ConfigDict, num_frames: int = 0) -> tuple[str, ...]:
    """The programs of a config, in the order of a run."""
    sections = dict.fromkeys(lineage.section_of(stage) for stage in lineage.stages(config))
    plans = sample_lib.make_plans(config, num_frames or config_lib.window_frames(config))
    return (*(f"train/{section}" for section in sections), *(_name(plan) for plan in plans), "decode")


def chosen(config: ml_collections.ConfigDict, parts: Sequence[str], num_frames: int = 0) -> tuple[str, ...]:
    """Those of `names` that `parts` name by their beginning ('train', 'sample/level_2'); no parts: all.

    Raises:
      ValueError: a part that names nothing.
    """
    every = names(config, num_frames)
    for part in parts:
        if not any(name == part or name.startswith(f"{part}/") for name in every):
            raise ValueError(
                f"--parts: {part!r} is no part of this config; choose train, sample or of {', '.join(every)}"
            )
    return tuple(n for n in every if not parts or any(n == p or n.startswith(f"{p}/") for p in parts))


def make(
    config: ml_collections.ConfigDict,
    name: str,
    mesh: jax.sharding.Mesh,
    *,
    num_frames: int = 0,
    num_prompts: int = 1,
) -> Program:
    """The program of a name.

    Raises:
      ValueError: the config does not fit the mesh.
    """
    kind, _, part = name.partition("/")
    if kind == "train":
        stage = next(s for s in lineage.stages(config) if lineage.section_of(s) == part)
        return training_step(config, stage, mesh)
    if kind == "sample":
        levels = sampling_levels(config, mesh, num_frames=num_frames, num_prompts=num_prompts)
        return next(level for level in levels if level.name == name)
    return decoding(config, mesh.devices.flat[0], num_frames=num_frames)
