"""The training loop: every stage in turn, each from the one before, resumable at any step.

    image_vae -> vae -> denoiser        (or denoiser_0, denoiser_1, .. with mtd.weights = per_level)

A stage lives in <workdir>/<stage>/. It is finished when its newest checkpoint is at its num_steps; then it is skipped.
The order within a step: dispatch the step, read the next batch while the device works, wait for nothing. The host
waits at log steps, at checkpoints and at the end. Resuming equals never having stopped: the state, the EMA, the
optimiser and the position in the data are in the checkpoint; keys are made of (seed, step).

SIGTERM and SIGINT: the current step ends, a checkpoint is written, and the process exits with status 42.
"""

import contextlib
import json
import os
import time
from typing import Any, Callable, Iterator, Mapping
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import steps
from nuwaxl_jax.training import tasks

LATENT_STATS_FILE = 'latent_stats.json'
LATENT_STATS_CLIPS = 128

# hook(stage, state, frozen, step) -> {name: number} for 'eval', {name: uint8 image or video} for 'sample'.
Hook = Callable[[str, state_lib.TrainState, Any, int], Mapping[str, Any]]


class Batches:
    """Batches on the device, one read ahead; `position` is that of the batch `take` returns next."""

    def __init__(self, iterator: Any, fields: tuple[str, ...], mesh: jax.sharding.Mesh):
        self._iterator, self._fields, self._mesh = iterator, fields, mesh
        self._ready: tuple[dict[str, jax.Array], Any] | None = None
        self.position = iterator.get_state()

    def read(self) -> None:
        """Reads the next batch, unless one is ready."""
        if self._ready is None:
            self.position = self._iterator.get_state()
            batch = next(self._iterator)
            on_device = partitioning.put_batch({name: batch[name] for name in self._fields}, self._mesh)
            self._ready = on_device, batch.get('episode')

    def peek(self) -> dict[str, jax.Array]:
        """The fields of the next batch, which `take` will return too."""
        self.read()
        return self._ready[0]

    def take(self) -> tuple[dict[str, jax.Array], Any]:
        """(fields on the device, episode numbers or None) of the next batch."""
        self.read()
        ready, self._ready = self._ready, None
        self.position = self._iterator.get_state()
        return ready


def _flops(compiled: Any) -> float | None:
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, (list, tuple)) and cost else cost
    return float(cost['flops']) if cost and 'flops' in cost else None


class Log:
    """What happened since the last line: metrics on the device, time, and which episodes each step saw."""

    def __init__(self, stage: str, num_steps: int, writer: metrics.MetricWriter, step: int):
        self._stage, self._num_steps, self._writer = stage, num_steps, writer
        self._values: dict[str, Any] | None = None
        self._episodes: dict[int, Any] = {}
        self._since, self._start = step, time.monotonic()
        self._paused = 0.0

    def add(self, step: int, values: dict[str, Any], episodes: Any) -> None:
        """Joins the metrics of one step; no transfer."""
        self._values = values if self._values is None else _merge(self._values, values)
        self._episodes[step] = episodes

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside is not training time."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def check(self) -> dict[str, float]:
        """Waits for the device; the means so far.

        Raises:
          FloatingPointError: a loss or gradient was not finite, naming the step and its episodes.
        """
        if self._values is None:
            return {}
        means, bad = metrics.to_host(self._values)
        if bad is not None:
            episodes = self._episodes.get(bad)
            seen = '' if episodes is None else f' (episodes {np.asarray(episodes).tolist()})'
            raise FloatingPointError(
                f'{self._stage}: the loss or its gradient is not finite at step {bad}{seen}; nothing was saved since. '
                f'Resume with a lower train.{self._stage}.learning_rate or grad_clip in a new workdir, or float32.')
        return means

    def write(self, step: int) -> dict[str, float]:
        """One line, and the files; waits for the device."""
        means = self.check()
        seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
        rate = (step - self._since) / seconds
        left = (self._num_steps - step) / rate if rate > 0 else 0.0
        means['steps_per_second'] = rate
        self._writer.scalars(step, means)
        shown = '  '.join(f'{name} {means[name]:.4g}' for name in sorted(means)
                          if name not in ('loss', 'steps_per_second', 'param_norm'))
        metrics.say(f'{self._stage} step {step}/{self._num_steps}  loss {means.get("loss", float("nan")):.5f}  '
                    f'{rate:.3g} steps/s  ETA {_clock(left)}  {shown}')
        self._values, self._episodes = None, {}
        self._since, self._start, self._paused = step, time.monotonic(), 0.0
        return means


_merge = jax.jit(metrics.merge)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}'


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def optimizer_of(settings: ml_collections.ConfigDict, no_decay: str = '') -> tuple[Any, Any]:
    """(optimizer, schedule) of config.train.<stage>."""
    curve = dict(learning_rate=settings.learning_rate, num_steps=settings.num_steps, warmup_steps=settings.warmup_steps,
                 lr_schedule=settings.lr_schedule, min_lr_ratio=settings.min_lr_ratio)
    optimizer = optim.make_optimizer(**curve, weight_decay=settings.weight_decay, b1=settings.b1, b2=settings.b2,
                                     grad_clip=settings.grad_clip, no_decay=no_decay)
    return optimizer, optim.make_schedule(**curve)


def _start(task: Any, optimizer: Any, mesh: Any, saver: checkpoint.Checkpointer, iterator: Any, params: Any,
           seed: int) -> state_lib.TrainState:
    """The newest checkpoint's state, with the iterator at its position; else a new one."""
    if saver.latest_step() is not None:
        state, meta = saver.restore(state_lib.abstract(task, optimizer, mesh))
        if meta['data'] is not None:
            iterator.set_state(meta['data'])
        metrics.say(f'{task.stage}: restored step {meta["step"]}, parameters, EMA, optimiser and data position, from '
                    f'{saver.directory}/{meta["step"]}')
        return state
    key = jax.random.fold_in(jax.random.key(seed), 0x1A17)  # apart from the keys of the steps
    return state_lib.create(task, optimizer, key, mesh, params=params() if callable(params) else params)


def run_stage(task: Any, frozen: Any, iterator: Any, settings: ml_collections.ConfigDict, directory: str, *,
              mesh: jax.sharding.Mesh, seed: int, config: dict[str, Any], interrupt: interrupts.Interrupt, params: Any = None,
              hooks: Mapping[str, Hook] | None = None) -> state_lib.TrainState:
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
      hooks: 'eval' and 'sample', called every eval_every and sample_every steps and at the end.

    Raises:
      SystemExit: 42, interrupted and saved.
      FloatingPointError: a loss that is not finite.
      ValueError: a batch that the mesh does not divide.
    """
    hooks = hooks or {}
    last = settings.num_steps
    partitioning.batch_size_divides(mesh, settings.batch_size // settings.accumulate,
                                    f'train.{task.stage}.batch_size / accumulate')
    optimizer, schedule = optimizer_of(settings, task.no_decay)
    frozen = jax.device_put(frozen, partitioning.replicate(mesh))
    with contextlib.ExitStack() as stack:
        saver = checkpoint.Checkpointer(os.path.join(directory, 'checkpoints'), settings.keep)
        stack.callback(saver.close)
        writer = metrics.MetricWriter(directory)
        stack.callback(writer.close)
        state = _start(task, optimizer, mesh, saver, iterator, params, seed)
        step = int(state.step)
        batches = Batches(iterator, task.fields, mesh)
        batches.read()
        interrupt.leave_if_asked(task.stage)
        compiled = _compile(task, optimizer, schedule, settings, mesh, state, frozen, batches)
        seed_array = jax.device_put(np.uint32(seed), partitioning.replicate(mesh))
        log = Log(task.stage, last, writer, step)

        def save():
            log.check()  # never a state that is not finite
            saver.save(state, data=batches.position, config=config)

        while step < last:
            batch, episodes = batches.take()
            state, values = compiled(state, frozen, batch, seed_array)
            step += 1
            log.add(step, values, episodes)
            saving = _due(step, settings.checkpoint_every, last)
            if step < last and not saving:
                batches.read()  # while the device works
            if _due(step, settings.log_every, last):
                log.write(step)
                saver.check()
            stop = interrupt.asked() and step < last
            if saving or stop:
                with log.pause():
                    save()
            with log.pause():
                for name, write in (('eval', writer.scalars), ('sample', writer.media)):
                    if name in hooks and not stop and _due(step, settings.get(f'{name}_every', 0), last):
                        write(step, hooks[name](task.stage, state, frozen, step))
            if stop:
                saver.wait()
                metrics.say(f'{task.stage}: interrupted at step {step}; saved; the same command resumes')
                raise SystemExit(interrupts.RESUME_ME)
        saver.wait()
        return state


def _compile(task: Any, optimizer: Any, schedule: Any, settings: Any, mesh: Any, state: Any, frozen: Any,
             batches: Batches) -> Callable[..., Any]:
    """The compiled step; prints the parameter table and what a step costs."""
    start = time.monotonic()
    step = steps.make_train_step(task, optimizer, ema_limit=settings.ema_decay, accumulate=settings.accumulate,
                                 schedule=schedule, mesh=mesh, state=state, frozen=frozen)
    example = batches.peek()
    compiled = step.lower(state, frozen, example, jax.ShapeDtypeStruct((), jnp.uint32)).compile()
    flops = _flops(compiled)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    if int(state.step) == 0:
        metrics.say(metrics.parameter_table(state.params))
    cost = 'unknown' if flops is None else f'{flops / 1e9:.3g} GFLOP'
    metrics.say(f'{task.stage}: {count:,} parameters, a step {cost} a device, compiled in '
                f'{time.monotonic() - start:.1f} s, mesh {dict(mesh.shape)}')
    return compiled


def stages(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The stages as they are run: with mtd.weights = per_level 'denoiser' is one stage a level."""
    out: list[str] = []
    for stage in config.train.stages:
        if stage == 'denoiser' and config.mtd.weights == 'per_level':
            out.extend(f'denoiser_{level}' for level in range(config.hierarchy.depth))
        else:
            out.append(stage)
    return tuple(out)


def section_of(stage: str) -> str:
    """The part of config.train that a stage reads."""
    return 'denoiser' if stage.startswith('denoiser') else stage


def _iterator(config: ml_collections.ConfigDict, stage: str, seed: int) -> Any:
    """The training data of a stage; of one level alone for 'denoiser_<level>'."""
    if stage.startswith('denoiser_'):
        level = int(stage.removeprefix('denoiser_'))
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.level_weights = tuple(float(k == level) for k in range(config.hierarchy.depth))
    return pipeline.make_iterator(config, 'train', section_of(stage), seed=seed, process_index=jax.process_index(),
                                  process_count=jax.process_count())


def vae_stage(config: ml_collections.ConfigDict, workdir: str) -> str:
    """The stage whose VAE the denoiser uses: 'vae', or 'image_vae' in a run without it.

    Raises:
      ValueError: neither has a checkpoint.
    """
    del config
    for stage in ('vae', 'image_vae'):
        if checkpoint.latest_step(workdir, stage) is not None:
            return stage
    raise ValueError(f"train.stages: the denoiser needs a VAE and {workdir} has none; put 'image_vae' and 'vae' before "
                     'it.')


def latent_stats(config: ml_collections.ConfigDict, workdir: str) -> dict[str, np.ndarray]:
    """{'latent_shift', 'latent_scale'}, float32 [c]: mean and 1 / std of each latent channel over training clips.

    Measured once, over LATENT_STATS_CLIPS clips of the denoiser's own mixture of strides, and kept beside the VAE's
    checkpoints in latent_stats.json.
    """
    stage = vae_stage(config, workdir)
    path = os.path.join(os.path.abspath(workdir), stage, LATENT_STATS_FILE)
    step = checkpoint.latest_step(workdir, stage)
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            saved = json.load(file)
        if saved['step'] == step:
            return {name: np.asarray(saved[name], np.float32) for name in ('latent_shift', 'latent_scale')}
    networks = networks_lib.build(config, config.train.denoiser.dtype)
    vae = checkpoint.restore_ema(workdir, stage)
    moments = jax.jit(lambda params, frames: tasks.latent_moments(networks, params, frames))
    size = config.train.denoiser.batch_size
    iterator = pipeline.make_iterator(config, 'train', 'denoiser', seed=config.seed)
    try:
        sums = [moments(vae, next(iterator)['frames']) for _ in range(max(1, LATENT_STATS_CLIPS // size))]
    finally:
        iterator.close()
    mean, square = (np.mean(np.asarray(x, np.float64), axis=0) for x in zip(*jax.device_get(sums)))
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    stats = dict(latent_shift=mean.tolist(), latent_scale=(1.0 / deviation).tolist())
    if jax.process_index() == 0:
        checkpoint.write_json(path, dict(stats, step=step, clips=len(sums) * size))
    metrics.say(f'{stage}: latent mean {np.round(mean, 3).tolist()}, std {np.round(deviation, 3).tolist()}')
    return {name: np.asarray(value, np.float32) for name, value in stats.items()}


def frozen_of(config: ml_collections.ConfigDict, workdir: str, stage: str) -> dict[str, Any]:
    """What a stage's loss reads beside its parameters: the finished VAE and its latents' scale, for the denoiser."""
    if section_of(stage) != 'denoiser':
        return {}
    return dict(vae=checkpoint.restore_ema(workdir, vae_stage(config, workdir)), **latent_stats(config, workdir))


def _first_params(workdir: str, stage: str) -> Any:
    """What a new stage starts from: the EMA of image_vae for vae, of the level above for denoiser_<level>."""
    if stage.startswith('denoiser_'):
        before = f"denoiser_{int(stage.removeprefix('denoiser_')) - 1}"
    else:
        before = 'image_vae' if stage == 'vae' else ''
    if not before or checkpoint.latest_step(workdir, before) is None:
        return None
    metrics.say(f'{stage}: starts from the EMA of {before}')
    return checkpoint.restore_ema(workdir, before)


def train(config: ml_collections.ConfigDict, workdir: str, hooks: Mapping[str, Hook] | None = None) -> None:
    """Runs every stage of config.train.stages that is not finished.

    Args:
      config: validated.
      workdir: of the run; made where it does not exist.
      hooks: see `run_stage`.

    Raises:
      ValueError: a workdir of another config; a mesh that does not fit the devices or the batch.
      SystemExit: 42, interrupted and saved.
    """
    mesh = partitioning.make_mesh(**config.mesh.to_dict())
    checkpoint.claim_workdir(workdir, config_lib.to_json(config))
    resolved = json.loads(config_lib.to_json(config))
    with interrupts.catch() as interrupt:
        for stage in stages(config):
            settings = config.train[section_of(stage)]
            done = checkpoint.latest_step(workdir, stage) or 0
            if done >= settings.num_steps:
                metrics.say(f'{stage}: finished at step {done}, skipped')
                continue
            interrupt.leave_if_asked(stage)
            seed = (config.seed + zlib.crc32(stage.encode())) % 2**31  # each stage its own data order and noise
            iterator = _iterator(config, stage, seed)
            try:
                run_stage(tasks.build(config, stage), frozen_of(config, workdir, stage), iterator, settings,
                          os.path.join(os.path.abspath(workdir), stage), mesh=mesh, seed=seed, config=resolved,
                          interrupt=interrupt, params=lambda stage=stage: _first_params(workdir, stage),
                          hooks=hooks)
            finally:
                iterator.close()
