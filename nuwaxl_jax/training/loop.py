"""The training loop: every stage in turn, each from the one before, resumable at any step.

    image_vae -> vae -> image_denoiser -> denoiser        (or denoiser_0, denoiser_1, .. with mtd.weights = per_level)

A stage lives in <workdir>/<stage>/. It is finished when its newest good checkpoint is at its num_steps; then it is
skipped. A save that fails in the background ends the run at the next step.
The order within a step: dispatch the step, read the next batch while the device works, wait for nothing. The host
waits at log steps, at checkpoints and at the end. Resuming equals never having stopped: the state, the EMA, the
optimiser and the position in the data are in the checkpoint; keys are made of (seed, step).

SIGTERM and SIGINT: the current step ends, a checkpoint is written, and the process exits with status 42.
"""

import contextlib
import dataclasses
import functools
import json
import os
import time
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax import profiling
from nuwaxl_jax.cost import model_flops
from nuwaxl_jax.training import ahead
from nuwaxl_jax.training import caching
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import feed
from nuwaxl_jax.training import health
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import perceptual
from nuwaxl_jax.training import progress
from nuwaxl_jax.training import retention
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import steps
from nuwaxl_jax.training import tasks

# hook(stage, state, frozen, step) -> {name: number} for 'eval', {name: uint8 image or video} for 'sample'.
Hook = Callable[[str, state_lib.TrainState, Any, int], Mapping[str, Any]]


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def optimizer_of(
    settings: ml_collections.ConfigDict,
    no_decay: str = "",
    mesh: jax.sharding.Mesh | None = None,
    new_layers: str = "",
) -> tuple[Any, Any]:
    """(optimizer, schedule) of config.train.<stage>."""
    curve = optim.curve(settings)
    optimizer = optim.make_optimizer(
        optimizer=settings.optimizer,
        **curve,
        weight_decay=settings.weight_decay,
        b1=settings.b1,
        b2=settings.b2,
        grad_clip=settings.grad_clip,
        no_decay=no_decay,
        new_layers=new_layers,
        pretrained_lr_ratio=settings.pretrained_lr_ratio,
        trainable=settings.trainable,
        mesh=mesh,
    )
    return optimizer, optim.make_schedule(**curve)


def _start(
    task: Any, optimizer: Any, mesh: Any, saver: checkpoint.Checkpointer, iterator: Any, params: Any, seed: int
) -> tuple[state_lib.TrainState, dict[str, Any]]:
    """The newest good checkpoint's state, with the iterator at its position, and what its log had gathered; a new state
    where there is no checkpoint at all."""
    if not saver.is_empty():
        state, meta = saver.restore(state_lib.abstract(task, optimizer, mesh))
        if meta["data"] is not None:
            iterator.set_state(meta["data"])
        metrics.say(
            f"{task.stage}: restored step {meta['step']}, parameters, EMA, optimiser and data position, from "
            f"{saver.directory}/{meta['step']}"
        )
        return state, meta.get("log") or {}
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))  # no step has this number
    return state_lib.create(task, optimizer, key, mesh, params=params() if callable(params) else params), {}


def run_stage(
    task: Any,
    frozen: Any,
    iterator: Any,
    settings: ml_collections.ConfigDict,
    directory: str,
    *,
    mesh: jax.sharding.Mesh,
    seed: int,
    config: dict[str, Any],
    interrupt: interrupts.Interrupt,
    params: Any = None,
    hooks: Mapping[str, Hook] | None = None,
    watch: health.Watch = health.Watch(),
) -> state_lib.TrainState:
    """Trains one task to settings.num_steps, from its newest checkpoint where there is one.

    Args:
      task: a `tasks.Task`.
      frozen: tree of arrays passed to its loss.
      iterator: yields dicts of numpy arrays; get_state, set_state.
      settings: config.train.<stage>.
      directory: <workdir>/<stage>.
      mesh: of the devices.
      seed: of initialisation and noise.
      config: the resolved config, saved in every checkpoint.
      interrupt: asked after each step.
      params: a new run starts from these (or from what this function returns) instead of task.init.
      hooks: 'eval' and 'sample', called every eval_every and sample_every steps and at the end; negative: never.
      watch: the peak that utilisation is of, and steps to trace.

    Raises:
      SystemExit: 42, interrupted and saved.
      FloatingPointError: a loss that is not finite.
      ValueError: a batch that the mesh does not divide.
    """
    partitioning.batch_size_divides(
        mesh, settings.batch_size // settings.accumulate, f"train.{task.stage}.batch_size / accumulate"
    )
    optimizer, schedule = optimizer_of(settings, task.no_decay, mesh, task.new_layers)
    frozen = jax.device_put(frozen, partitioning.replicate(mesh))
    with contextlib.ExitStack() as stack:
        saver = checkpoint.Checkpointer(os.path.join(directory, "checkpoints"), checkpoint.Keep.of(settings))
        stack.callback(saver.close)
        writer = metrics.MetricWriter(directory)
        stack.callback(writer.close)
        health_file = os.path.join(directory, "health.json") if jax.process_index() == 0 else None
        clock = health.Clock(health_file, watch.began)
        state, unwritten = _start(task, optimizer, mesh, saver, iterator, params, seed)
        step = int(state.step)
        batches = feed.Batches(iterator, task.fields, mesh)
        batches.read()
        interrupt.leave_if_asked(task.stage)
        compiled, flops = _compile(task, optimizer, schedule, settings, mesh, state, frozen, batches, watch.peak_flops)
        seed_array = jax.device_put(np.uint32(seed), partitioning.replicate(mesh))
        sizes = dict(examples=settings.batch_size, flops=flops, peak=watch.peak_flops, devices=mesh.size)
        rates = functools.partial(health.rates, **sizes)
        skipped = dict(max_skipped=settings.get("max_skipped", 0), record=os.path.join(directory, "skipped.jsonl"))
        log = progress.Log(task.stage, settings.num_steps, writer, step, **skipped, clock=clock, rates=rates)
        tracer = profiling.Tracer(watch.profile, os.path.join(directory, "profile"))
        stack.callback(tracer.close)
        hooks = functools.partial(_call_hooks, hooks or {}, writer, settings, task.stage)
        it = _Stage(task.stage, settings, config, hooks, interrupt, saver, clock, log, tracer, batches)
        if unwritten:
            it.resume(unwritten)
        clock.begin(step)
        return _steps(it, compiled, state, frozen, seed_array)


class _Stage:
    """What the steps of a stage work with beside arrays."""

    def __init__(
        self,
        name: str,
        settings: ml_collections.ConfigDict,
        config: dict[str, Any],
        hooks: Callable[..., Mapping[str, float]],
        interrupt: interrupts.Interrupt,
        saver: checkpoint.Checkpointer,
        clock: health.Clock,
        log: progress.Log,
        tracer: profiling.Tracer,
        batches: feed.Batches,
    ):
        self.name, self.settings, self.config, self.hooks, self.interrupt = name, settings, config, hooks, interrupt
        self.saver, self.clock, self.log, self.tracer, self.batches = saver, clock, log, tracer, batches
        self.measured = retention.SinceLastSave(log.began)

    def resume(self, unwritten: dict[str, Any]) -> None:
        """Goes on with what the log had gathered when the checkpoint was saved."""
        self.log.resume(unwritten["interval"])
        self.measured.resume(unwritten["measured"])

    def save(self, state: state_lib.TrainState, step: int) -> None:
        """Starts a checkpoint, of a good state alone: raises where too many steps were skipped."""
        with self.clock.spent("save"):
            means = self.measured.saved(step, self.log.check())
            gathered = dict(interval=self.log.state(), measured=self.measured.state())
            self.saver.save(state, data=self.batches.position, config=self.config, measured=means, log=gathered)
            self.log.forgive()

    def wait(self, step: int) -> None:
        """Returns when all is on disk."""
        with self.clock.spent("save"):
            self.saver.wait()
        self.clock.write(step)


def _steps(
    it: _Stage, compiled: Callable[..., Any], state: state_lib.TrainState, frozen: Any, seed: jax.Array
) -> state_lib.TrainState:
    """Steps until the last; the state after it."""
    first = step = it.log.began
    last, values = it.settings.num_steps, None
    while step < last:
        it.tracer.before(step - first + 1)
        it.clock.reading(it.batches.read, lambda: health.is_idle(values))  # nothing, if the next one is ready
        batch, episodes = it.batches.take()
        state, values = compiled(state, frozen, batch, seed)
        step += 1
        it.log.add(step, values, episodes)
        saving = _due(step, it.settings.checkpoint_every, last)
        if step < last and not saving:
            it.clock.reading(it.batches.read, lambda: health.is_idle(values))  # while the device works
        it.saver.check()
        _say_if(it.tracer.after(step - first, values))
        if _due(step, it.settings.log_every, last):
            it.measured.line(step, it.log.write(step))
        stop = it.interrupt.asked() and step < last
        if saving or stop:
            it.save(state, step)
        if stop:
            it.wait(step)
            metrics.say(f"{it.name}: interrupted at step {step}; saved; the same command resumes")
            raise SystemExit(interrupts.RESUME_ME)
        with it.clock.spent("eval"):
            it.saver.note(step, it.hooks(state, frozen, step))
    it.wait(step)
    return state


def _say_if(line: str) -> None:
    if line:
        metrics.say(line)


def _call_hooks(
    hooks: Mapping[str, Hook], writer: Any, settings: Any, stage: str, state: Any, frozen: Any, step: int
) -> Mapping[str, float]:
    """Those that are due, and what they return into the files; what 'eval' returned."""
    returned: dict[str, Any] = {}
    for name, write in (("eval", writer.scalars), ("sample", writer.media)):
        every = settings.get(f"{name}_every", 0)
        if name in hooks and every >= 0 and _due(step, every, settings.num_steps):
            returned[name] = hooks[name](stage, state, frozen, step)
            write(step, returned[name])
    return returned.get("eval", {})


def trace_step(
    task: Any, optimizer: Any, schedule: Any, settings: Any, mesh: Any, state: Any, frozen: Any, batch: Any
) -> jax.stages.Traced:
    """A step, traced; state, frozen and batch may be arrays or ShapeDtypeStructs with shardings."""
    step = steps.make_train_step(
        task,
        optimizer,
        ema_limit=settings.ema_decay,
        accumulate=settings.accumulate,
        schedule=schedule,
        mesh=mesh,
        state=state,
        frozen=frozen,
        learning=optim.learning_pattern(settings.trainable, task.new_layers),
    )
    return step.trace(state, frozen, batch, jax.ShapeDtypeStruct((), jnp.uint32))


def _compile(
    task: Any,
    optimizer: Any,
    schedule: Any,
    settings: Any,
    mesh: Any,
    state: Any,
    frozen: Any,
    batches: feed.Batches,
    peak: float | None,
) -> tuple[Callable[..., Any], float]:
    """(the compiled step, model FLOPs of a step); prints the parameter table and what a step costs."""
    start = time.monotonic()
    traced = trace_step(task, optimizer, schedule, settings, mesh, state, frozen, batches.peek())
    flops = model_flops.count(traced.jaxpr)
    compiled = traced.lower().compile()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    if int(state.step) == 0:
        metrics.say(metrics.parameter_table(state.params))
    of = "" if peak is None else f", MFU is of {mesh.size} x {peak / 1e12:.4g} TFLOP/s"
    metrics.say(
        f"{task.stage}: {count:,} parameters, a step {flops / 1e9:.3g} model GFLOP{of}, compiled in "
        f"{time.monotonic() - start:.1f} s, mesh {dict(mesh.shape)}"
    )
    return compiled, flops


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    hooks: Mapping[str, Hook] | None = None,
    watch: health.Watch = health.Watch(),
) -> None:
    """Runs every stage of config.train.stages that is not finished.

    Args:
      config: validated.
      workdir: of the run; made where it does not exist.
      hooks, watch: see `run_stage`; the time before the first stage that is trained counts as its start.

    Raises:
      ValueError: a workdir of another config; a mesh that does not fit the devices; LPIPS weights that cannot be used;
        what `ahead.check` refuses.
      SystemExit: 42, interrupted and saved.
    """
    mesh = partitioning.make_mesh(**config.mesh.to_dict())
    config = perceptual.resolve(config, workdir)
    stages = lineage.stages(config)
    steps = {stage: config.train[lineage.section_of(stage)].num_steps for stage in stages}
    to_train = [stage for stage in stages if (checkpoint.latest_step(workdir, stage) or 0) < steps[stage]]
    ahead.check(config, workdir, to_train, mesh)  # before hours of the first are spent
    checkpoint.claim_workdir(workdir, config_lib.to_json(config))
    resolved = json.loads(config_lib.to_json(config))
    with interrupts.catch() as interrupt:
        for stage in stages:
            settings = config.train[lineage.section_of(stage)]
            done = checkpoint.latest_step(workdir, stage) or 0
            if done >= settings.num_steps:  # later stages start from it: it must be good
                done = checkpoint.settle(workdir, stage) or 0
            if done >= settings.num_steps:
                metrics.say(f"{stage}: finished at step {done}, skipped")
                continue
            interrupt.leave_if_asked(stage)
            if settings.pretrained_lr_ratio != 1 and not lineage.is_pretrained(config, workdir, stage):
                metrics.say(f"{stage}: no stage before it has trained its layers, so pretrained_lr_ratio is not used")
                settings = ml_collections.ConfigDict(dict(settings, pretrained_lr_ratio=1.0))
            iterator = caching.iterator(config, workdir, stage)
            try:
                run_stage(
                    tasks.build(config, stage),
                    lineage.frozen_of(config, workdir, stage),
                    iterator,
                    settings,
                    os.path.join(os.path.abspath(workdir), stage),
                    mesh=mesh,
                    seed=caching.seed_of(config, stage),
                    config=resolved,
                    interrupt=interrupt,
                    params=lambda stage=stage: lineage.first_params(config, workdir, stage),
                    hooks=hooks,
                    watch=watch,
                )
                watch = dataclasses.replace(watch, began=None)
            finally:
                iterator.close()
