"""Is this worker fit for the run? Runs on every worker before it, in under a minute.

Stages, in this order; the first that fails is reported, "@nuwaxl worker=K stage=S failed: why", exit status 3:

    python    the version that the package needs
    import    the package and what it stands on
    workdir   is there, can be written, and is the same folder on every worker: worker 0 leaves a token, all look for it
    devices   every worker joins, and each sees all devices of the slice

A worker that fails early makes the others fail later, waiting for it; `pod.py` names the earliest stage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
import time

STAGES = ("python", "import", "workdir", "devices")
OLDEST = (3, 11)


class Unfit(Exception):
    """One line: what is wrong, the mend."""


def _report(stage: str, line: str) -> None:
    # One write: all workers' lines meet in one stream, and an unbuffered print writes the end of its line on its own.
    sys.stdout.write(f"@nuwaxl worker={os.environ.get('NUWAXL_WORKER', 'unknown')} stage={stage} {line}\n")
    sys.stdout.flush()


def _python(options: argparse.Namespace) -> str:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST:
        raise Unfit(f"Python {found}, the package needs {OLDEST[0]}.{OLDEST[1]}; run setup again")
    return found


def _import(options: argparse.Namespace) -> str:
    for name in options.imports.split(","):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken install raises anything
            raise Unfit(f"{name}: {type(error).__name__}: {error}; run setup again") from error
    return options.imports


def _workdir(options: argparse.Namespace) -> str:
    folder = pathlib.Path(options.workdir) / "launch"
    token = folder / "preflight"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.environ.get("NUWAXL_WORKER") == "0":
            token.write_text(options.token)
        probe = folder / f"preflight-worker-{os.environ.get('NUWAXL_WORKER', 'unknown')}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Unfit(
            f"{folder} cannot be written ({error.strerror}); is it mounted, may this VM write there?"
        ) from error
    limit = time.monotonic() + options.seconds / 3
    while not token.exists() or token.read_text() != options.token:
        if time.monotonic() > limit:
            raise Unfit(f"{options.workdir} is not the folder that worker 0 sees; mount one disk on every worker")
        time.sleep(0.2)
    return options.workdir


def _devices(options: argparse.Namespace) -> str:
    import jax

    if options.hosts > 1:
        try:
            from nuwaxl_jax import hosts  # waits by itself: jax.distributed ends a process that waited in vain

            hosts.join(hosts.job_of("tpu"), timeout=options.seconds / 2)
        except Exception as error:  # HostsError, or whatever the coordination service raises
            raise Unfit(f"not every worker joined: {' '.join(str(error).split())[:200]}") from error
    try:
        found, local, processes = jax.device_count(), jax.local_device_count(), jax.process_count()
        kind = jax.devices()[0].device_kind
    except Exception as error:
        raise Unfit(f"no devices: {' '.join(str(error).split())[:200]}") from error
    seen = f"{found} devices ({kind}), {local} here, {processes} processes"
    if found != options.devices or processes != options.hosts:
        raise Unfit(f"sees {seen}; the slice has {options.devices} devices on {options.hosts} hosts")
    if jax.default_backend() != options.platform:
        raise Unfit(f"sees {seen} of {jax.default_backend()}, not of {options.platform}; is jax[tpu] installed?")
    return seen


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 fit, 3 not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--platform", default="tpu")
    parser.add_argument("--imports", default="jax,nuwaxl_jax.main,nuwaxl_jax.training.loop")
    options = parser.parse_args(argv)
    for stage in STAGES:
        start = time.monotonic()
        try:
            found = globals()[f"_{stage}"](options)
        except Unfit as error:
            _report(stage, f"failed: {error}")
            return 3
        _report(stage, f"ok {found} ({time.monotonic() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
