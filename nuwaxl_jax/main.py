"""The command: flags, one-line errors, dispatch on --mode.

  python -m nuwaxl_jax.main --mode=train  --config=configs/toons.py:small --workdir=DIR [--config.KEY=VALUE ...]
  python -m nuwaxl_jax.main --mode=sample --story=FILE --workdir=DIR [--weights=shipped] [--frames=226]
  python -m nuwaxl_jax.main --mode=eval   --workdir=DIR [--weights=...] [--inception=FILE] [--clip=FOLDER]
  python -m nuwaxl_jax.main --mode=score  --made=VIDEOS --real=VIDEOS --workdir=DIR [--frames=N] [--inception=FILE]
  python -m nuwaxl_jax.main --mode=compare --records=DIR,DIR
  python -m nuwaxl_jax.main --mode=export --workdir=DIR --weights=FILE.safetensors
  python -m nuwaxl_jax.main --mode=export --weights=FILE.safetensors --layout=diffusers --out=FOLDER
  python -m nuwaxl_jax.main --mode=import --source=PIPELINE --config=FILE:PRESET --weights=FILE.safetensors [--dry_run]
  python -m nuwaxl_jax.main --mode=data --check --config.data.path=VIDEOS [--nodecode] [--out=REPORT.json]
  python -m nuwaxl_jax.main --mode=data --caption=command --program=CMD --config.data.path=VIDEOS --out=CAPTIONS.jsonl
  python -m nuwaxl_jax.main --mode=data --cut --config.data.path=VIDEOS --out=SHOTS.jsonl
  python -m nuwaxl_jax.main --mode=data --cache --config=FILE:PRESET --workdir=DIR --config.data.cache=FOLDER --items=N
  python -m nuwaxl_jax.main --mode=data --prepare --config.data.path=VIDEOS --out=FOLDER [--config.data.frame_size=128]
  python -m nuwaxl_jax.main --mode=checkpoint --workdir=DIR [--stage=S] [--step=N] [--verify|--slim|--out=F|--from=F]
  python -m nuwaxl_jax.main --mode=compile --config=FILE:PRESET [--topology=v5e:4x4] [--parts=train,sample] [--out=JSON]

Sampling and evaluation read the config that the weights carry; `--config.KEY=VALUE` then overrides single fields.
Exit status: 0 done, 2 a mistake in the input (one line says which), 42 interrupted and resumable, 1 anything else.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time
from typing import Any

from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags

from nuwaxl_jax import command_flags
from nuwaxl_jax import compile_cache
from nuwaxl_jax import config as config_lib
from nuwaxl_jax import host_memory
from nuwaxl_jax import hosts
from nuwaxl_jax import profiling
from nuwaxl_jax import leaving

_BEGAN = time.time()
_DEFAULT_CONFIG = str(pathlib.Path(config_lib.__file__))

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(command_flags)


def _refuse(error: Exception, status: int = 2) -> None:
    line = " ".join(str(error).split())
    print(f"nuwaxl_jax: {line or type(error).__name__}", file=sys.stderr)
    sys.exit(status)


def _check_fields(argv: list[str]) -> None:
    """Raises ConfigError for --config.FIELD where there is no such field."""
    for argument in argv[1:]:
        if argument.startswith(("--config.", "-config.")):
            config_lib.check_field(argument.split("config.", 1)[1].split("=", 1)[0])


def _define_config(argv: list[str]) -> None:
    """The flag --config; it reads the command line's overrides of the default config as it is defined."""
    try:
        _check_fields(argv)
        config_flags.DEFINE_config_file(
            "config", _DEFAULT_CONFIG, "Config file, with a preset after a colon.", lock_config=True
        )
    except Exception as error:
        if __name__ != "__main__":
            raise
        _refuse(error)


_define_config(sys.argv if __name__ == "__main__" else [])


class UsageError(ValueError):
    """A mistake on the command line."""


def _load_bundle() -> tuple[Any, Any, dict]:
    """(bundle, config with the command line's overrides, card) from --weights or the workdir."""
    from nuwaxl_jax import weights as weights_lib
    from nuwaxl_jax.training import export

    source = FLAGS.weights
    if not source and export.is_trained(FLAGS.workdir):
        bundle, config, card = export.bundle_from_workdir(FLAGS.workdir)
    else:
        bundle, config, card = weights_lib.load(weights_lib.find(source))
    print(f"weights: {card.get('file', FLAGS.workdir)}", file=sys.stderr)
    trained = config.hierarchy.handover
    for field, value in config_flags.get_override_values(FLAGS["config"]).items():
        with config.unlocked():
            config.update_from_flattened_dict({field: value})
    asked = config.hierarchy.handover
    if asked != trained:  # the networks have seen no such condition
        problem = f"these weights were trained with {trained!r}, not {asked!r}"
        raise config_lib.ConfigError(f"config.hierarchy.handover: {problem}; train with the flag, or leave it out")
    return bundle, config_lib.validate(config), card


def _train() -> None:
    from nuwaxl_jax.cost import topologies
    from nuwaxl_jax.training import health
    from nuwaxl_jax.training import loop
    from nuwaxl_jax.training import previews

    config = config_lib.validate_training(FLAGS.config)
    peak = FLAGS.peak_tflops * 1e12 or topologies.peak_flops()
    watch = health.Watch(peak_flops=peak, profile=profiling.Window.parse(FLAGS.profile), began=_BEGAN)
    loop.train(config, FLAGS.workdir, hooks=previews.make_hooks(config), watch=watch)


def _sample() -> None:
    from nuwaxl_jax.hierarchy import sample

    if not FLAGS.story:
        raise UsageError("--story is missing; give a text file with one prompt a line")
    if not os.path.isfile(FLAGS.story):
        raise UsageError(f"--story: {FLAGS.story} does not exist; give a text file with one prompt a line")
    bundle, config, card = _load_bundle()
    window = profiling.Window.parse(FLAGS.profile)
    sample.run(config, bundle, card, FLAGS.story, FLAGS.workdir, FLAGS.frames, FLAGS.redo, profile=window)


def _score() -> None:
    from nuwaxl_jax.evaluation import measures
    from nuwaxl_jax.evaluation import video_sets

    networks = measures.Measures.load(FLAGS.i3d, FLAGS.inception, FLAGS.clip)
    scope = video_sets.Scope(FLAGS.frames, FLAGS.size, FLAGS.block, FLAGS.blocks, FLAGS.stills)
    options = dict(scope=scope, measures=networks, progress=_progress_line())
    video_sets.run(FLAGS.made, FLAGS.real, FLAGS.workdir, **options)


def _eval() -> None:
    from nuwaxl_jax.evaluation import measures
    from nuwaxl_jax.evaluation import run

    bundle, config, card = _load_bundle()
    sizes = dict(block=FLAGS.block, blocks=FLAGS.blocks, stills=FLAGS.stills)
    scope = run.Scope(FLAGS.stories, FLAGS.frames, FLAGS.others, FLAGS.ways or run.Scope.ways, **sizes)
    paths = (FLAGS.i3d, FLAGS.inception, FLAGS.clip, FLAGS.lpips)
    networks = measures.Measures.load(*paths) if FLAGS.measure else None
    run.run(config, bundle, card, FLAGS.workdir, scope=scope, measures=networks, real_scores=FLAGS.real_scores)


def _compare() -> None:
    from nuwaxl_jax.evaluation import comparison

    comparison.run(FLAGS.records)


def _import() -> None:
    from nuwaxl_jax.importing import run

    if not FLAGS.weights.endswith(".safetensors") and not FLAGS.dry_run:
        raise UsageError("--weights must name the .safetensors file to write")
    given = {part: FLAGS[part].value for part in ("vae", "unet", "text_encoder", "tokenizer")}
    if not FLAGS.source and not any(given.values()):
        raise UsageError("--source is missing; give a pipeline folder or a single-file checkpoint")
    run.run(config_lib.validate(FLAGS.config), FLAGS.source, given, FLAGS.weights, FLAGS.dry_run)


def _export_layout() -> None:
    from nuwaxl_jax import weights as weights_lib
    from nuwaxl_jax.importing import export

    if not FLAGS.out:
        raise UsageError(f"--out is missing; name what --layout={FLAGS.layout} is to write")
    export.run(weights_lib.find(FLAGS.weights), FLAGS.out, FLAGS.layout, FLAGS.level)
    print(f"{FLAGS.out}: written")


def _export() -> None:
    from nuwaxl_jax import weights as weights_lib
    from nuwaxl_jax.training import export

    if FLAGS.layout != "nuwaxl":
        return _export_layout()
    _require_workdir()
    if not FLAGS.weights.endswith(".safetensors"):
        raise UsageError("--weights must name the .safetensors file to write")
    bundle, config, card = export.bundle_from_workdir(FLAGS.workdir)
    weights_lib.save(FLAGS.weights, bundle, config, card)
    print(f"{FLAGS.weights}: {os.path.getsize(FLAGS.weights) / 1e6:.1f} MB")


def _checkpoint() -> None:
    from nuwaxl_jax.training import checkpoint_command

    _require_workdir()
    source, options = FLAGS["from"].value, dict(verify=FLAGS.verify, slim=FLAGS.slim, out=FLAGS.out)
    checkpoint_command.run(FLAGS.workdir, FLAGS.stage, FLAGS.step, source=source, **options)


def _cache() -> None:
    from nuwaxl_jax.training import caching

    config = config_lib.validate_training(FLAGS.config)
    _require_workdir()
    if not config.data.cache:
        raise UsageError("config.data.cache is empty; name the folder to fill with --config.data.cache=FOLDER")
    if not FLAGS.items:
        settings = config.train.denoiser
        draws = settings.num_steps * settings.batch_size
        raise UsageError(f"--items is missing; the denoiser draws {draws} examples in its {settings.num_steps} steps")
    caching.run(config, FLAGS.workdir, count=FLAGS.items, progress=_progress_line())


def _prepare(config: ml_collections.ConfigDict) -> None:
    from nuwaxl_jax.data.prepared import run

    if not FLAGS.out:
        raise UsageError("--out is missing; name the folder that --prepare is to make")
    options = dict(image=FLAGS.image, quality=FLAGS.quality, shard=FLAGS.shard, shards=FLAGS.shards)
    run.prepare(config, FLAGS.out, **options, progress=_progress_line())


def _data() -> None:
    if FLAGS.check + bool(FLAGS.caption) + FLAGS.cut + FLAGS.cache + FLAGS.prepare != 1:
        raise UsageError("--mode=data needs one of --check, --caption, --cut, --cache and --prepare")
    if FLAGS.cache:
        return _cache()
    config = config_lib.validate(FLAGS.config)
    if not config.data.path:
        raise UsageError("config.data.path is empty; give a folder of videos or a manifest with --config.data.path=DIR")
    if FLAGS.prepare:
        return _prepare(config)
    wanted = ".json" if FLAGS.check else ".jsonl"
    if not FLAGS.out.endswith(wanted) and (FLAGS.out or not FLAGS.check):
        raise UsageError(f"--out must name the {wanted} file to write")
    if FLAGS.check:
        from nuwaxl_jax.data import doctor

        doctor.check(config, decode=FLAGS.decode, out=FLAGS.out, progress=_progress_line())
        return
    if FLAGS.cut:
        from nuwaxl_jax.data import shots

        bounds = dict(threshold=FLAGS.threshold, min_seconds=FLAGS.min_seconds)
        shots.run(config, FLAGS.out, **bounds, progress=_progress_line())
        return
    from nuwaxl_jax.data.captioning import captioners
    from nuwaxl_jax.data.captioning import run

    captioner = captioners.make(FLAGS.caption, FLAGS.program, FLAGS.model)
    options = dict(stride=FLAGS.stride, overrides=FLAGS.overrides, progress=_progress_line())
    run.run(config, captioner, FLAGS.out, **options)


def _progress_line() -> Any:
    """Writes a line over the one before, on a terminal alone."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)


def _compile() -> None:
    from nuwaxl_jax.cost import run

    if FLAGS.topology:
        jax.config.update("jax_platforms", "cpu")  # the host's part; an attached accelerator is not asked
    run.run(
        config_lib.validate(FLAGS.config),
        FLAGS.topology,
        parts=FLAGS.parts,
        num_frames=FLAGS.frames,
        num_prompts=FLAGS.prompts,
        hbm_gib=FLAGS.hbm_gib,
        effort=FLAGS.effort,
        out=FLAGS.out,
    )


def _default_cpu_devices() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if FLAGS.mode in ("train", "compile", "data", "checkpoint") else min(cores, 8)


_MODES = {
    "train": _train,
    "sample": _sample,
    "eval": _eval,
    "score": _score,
    "compare": _compare,
    "export": _export,
    "import": _import,
    "data": _data,
    "checkpoint": _checkpoint,
    "compile": _compile,
}


def _require_workdir() -> None:
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing; name the folder of the run")


def main(argv: list[str]) -> None:
    """Dispatches on --mode."""
    if len(argv) > 1:
        raise UsageError(f"unknown argument {argv[1]!r}; options start with --")
    if FLAGS.mode in ("train", "sample", "eval", "score", "data"):
        leaving.at_once("nuwaxl_jax: interrupted; the same command goes on")
    compile_cache.use()
    jax.config.update("jax_num_cpu_devices", FLAGS.cpu_devices or _default_cpu_devices())
    job = hosts.job_of(FLAGS.hosts, FLAGS.processes, FLAGS.process)
    if job is not None and FLAGS.mode not in ("train", "sample", "eval") and not FLAGS.cache:
        raise UsageError(f"--mode={FLAGS.mode} is one process's work; start it once, with --hosts=none")
    hosts.join(job)
    if FLAGS.mode in ("train", "sample", "eval", "score"):
        _require_workdir()
        if host_memory.cpu_alone(jax.config.jax_platforms) or jax.default_backend() == "cpu":
            host_memory.keep_freed_pages()
    _MODES[FLAGS.mode]()


def _check_config_file() -> None:
    """config_flags keeps quiet about a file it could not load until the config is used."""
    try:
        str(FLAGS.config.seed)
    except OSError as error:
        path = FLAGS["config"].config_filename
        raise UsageError(f"--config: {path} cannot be read; give a file such as configs/toons.py:small") from error


def run(argv: list[str] | None = None) -> None:
    """Parses flags, runs, and turns a mistake of the user into one line and exit status 2."""
    argv = sys.argv if argv is None else argv
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file at INFO
    if any(argument in ("-h", "-help", "--help") for argument in argv[1:]):
        print(f"{__doc__}\nFlags, beside --config.FIELD=VALUE:\n{FLAGS.module_help(command_flags)}")
        return
    try:
        _check_fields(argv)
        remaining = FLAGS(argv)
        _check_config_file()
    except Exception as error:  # absl and ml_collections raise many types for a wrong flag or a wrong config file
        _refuse(error)
    try:
        main(remaining)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("NUWAXL_TRACEBACK"):
            raise
        _refuse(error)
    except (hosts.HostsError, FloatingPointError) as error:
        _refuse(error, 1)


if __name__ == "__main__":
    run()
