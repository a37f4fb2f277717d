"""`--mode=compile`: the parameters of a config, and its programs compiled for given devices, before paying."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from typing import Any, Callable, Iterator, Sequence

import jax
import ml_collections

from nuwaxl_jax import files
from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import parameters
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import topologies


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)


def run(
    config: ml_collections.ConfigDict,
    topology_name: str = "",
    *,
    parts: Sequence[str] = (),
    num_frames: int = 0,
    num_prompts: int = 1,
    hbm_gib: float = 0.0,
    effort: float = 0.0,
    out: str = "",
    say: Callable[[str], None] = _say,
) -> dict[str, Any]:
    """Reports on the programs of a config; writes the record to `out` where it is not empty.

    Args:
      config: validated.
      topology_name: of `topologies.describe`; '' is this machine.
      parts: beginnings of program names; none: all.
      num_frames: of the sampled video; 0 is the full tree.
      num_prompts: different ones of its story.
      hbm_gib: memory a device that may be used; 0 is the topology's.
      effort: of the compiler, -1 to 1; 0 is its default. At -1 a large program compiles in minutes that does not in
        half an hour at 0; operations are the same, bytes and collectives are not (experiments/pod_cost).

    Raises:
      ValueError: an unknown topology or part, libtpu missing, or a mesh that is not of so many devices.
    """
    wanted = programs.chosen(config, parts, num_frames)
    topology = topologies.describe(topology_name)
    mesh = partitioning.make_mesh(**config.mesh.to_dict(), devices=topology.devices)
    limit = hbm_gib * topologies.GIB or topology.limit
    say(
        f"{config.name} on {topology.name}: {topology.chips} chips, {len(topology.devices)} devices, "
        f"{report.gib(limit)} each, mesh {dict(mesh.shape)}"
    )
    counts = parameters.table(config)
    say(parameters.text(counts))
    rows = []
    for name in wanted:
        try:
            program = programs.make(config, name, mesh, num_frames=num_frames, num_prompts=num_prompts)
        except ValueError as error:  # this stage does not fit this mesh; others may
            row = dict(program=name, error=" ".join(str(error).split()))
        else:
            with _effort(effort):
                row = report.measure(program, topology, config, limit)
        rows.append(row)
        say(report.text(row))
    record = dict(
        config=config.to_dict(),
        topology=topology.name,
        chips=topology.chips,
        devices=len(topology.devices),
        limit=limit,
        effort=effort,
        versions=_versions(),
        parameters=counts,
        programs=rows,
    )
    if out:
        files.write_json(out, record)
    return record


@contextlib.contextmanager
def _effort(value: float) -> Iterator[None]:
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", value or before)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


def _versions() -> dict[str, str]:
    out = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out | {"backend": jax.default_backend()}
