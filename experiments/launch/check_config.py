"""The run's arguments, checked before anything is rented, with the code that will run."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from experiments.launch import slices


def check(root: str, args: tuple[str, ...]) -> None:
    """Checks the arguments against the code in `root`, in a process of its own.

    Raises:
      UsageError: with the run's own line.
    """
    known = [arg for arg in args if arg.startswith("--mode=")]
    if not known or known[-1].removeprefix("--mode=") not in ("train", "sample", "eval"):
        raise slices.UsageError(
            "the run is missing; give after -- what nuwaxl_jax.main gets: -- --mode=train --config=..."
        )
    for arg in args:
        if arg.split("=", 1)[0].lstrip("-") == "workdir":
            raise slices.UsageError("--workdir belongs before --: it is mounted on the workers and given to the run")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    command = [
        sys.executable,
        str(pathlib.Path(__file__).resolve().with_name("parse_only.py")),
        *args,
        "--workdir=/workdir",
    ]
    done = subprocess.run(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise slices.UsageError(f"the run would not start: {said[-1] if said else 'status ' + str(done.returncode)}")
