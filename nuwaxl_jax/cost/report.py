"""What one program costs: memory of a device by kind, operations, traffic, collectives, bounds, and what to change.

    total = arguments + outputs - aliased (outputs in donated arguments) + temporaries + code + beside

`beside` lies on the device during a call and is no argument of the program (XLA drops what a program does not read):
the decoder in training, the networks of other levels in a sliding window.

Bounds in seconds divide by published peaks; no program reaches them, and nothing here is a measurement of time.
"""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import ml_collections

from nuwaxl_jax.cost import hlo
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.models import layers

GIB = topologies.GIB
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)\s*([KMGT]?)"


def _bytes(match: re.Match | None) -> float | None:
    return float(match.group(1)) * _UNITS[match.group(2)] if match else None


def refusal(message: str) -> dict[str, float] | None:
    """{'total', 'limit', 'temporaries'} in bytes, of a compiler's message that memory does not suffice; else None."""
    message = " ".join(message.split())
    alone = re.search(rf"HLO temporaries \({_NUMBER}\) exceeds available HBM \({_NUMBER}\)", message)
    used = re.search(rf"Used {_NUMBER}B? of {_NUMBER}B?\s+hbm", message) or alone
    if not used:
        return None
    out = dict(total=_bytes(used), limit=float(used.group(3)) * _UNITS[used.group(4)])
    temporaries = _bytes(alone or re.search(rf"HLO temp\s+{_NUMBER}", message))
    return out | ({} if temporaries is None else {"temporaries": temporaries})


def _beside(program: programs.Program, compiled: jax.stages.Compiled) -> float:
    """Bytes of `held` that the program dropped from its arguments."""
    infos, tree = jax.tree.flatten(compiled.args_info)
    kept = tree.flatten_up_to(compiled.input_shardings)  # None: dropped
    whole = programs.device_bytes(program.held)
    used = sum(
        programs.device_bytes(jax.ShapeDtypeStruct(i.shape, i.dtype, sharding=s))
        for i, s in zip(infos, kept, strict=True)
        if s is not None
    )
    return max(0.0, whole - used)


def memory_of(program: programs.Program, compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes a device by kind, see the module."""
    stats = compiled.memory_analysis()
    out = dict(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        beside=_beside(program, compiled),
    )
    out["total"] = sum(out.values()) - 2 * out["aliased"]
    return {name: float(value) for name, value in out.items()}


def measure(
    program: programs.Program,
    topology: topologies.Topology,
    config: ml_collections.ConfigDict,
    limit: float | None = None,
) -> dict[str, Any]:
    """Compiles one program and reports on it; JSON.

    Args:
      limit: bytes a device; None takes the topology's.
    """
    limit = topology.limit if limit is None else limit
    kinds = {name: programs.device_bytes(tree) for name, tree in program.held.items()}
    row: dict[str, Any] = dict(
        program=program.name, settings=program.settings, held={k: v for k, v in kinds.items() if v}
    )
    start = time.perf_counter()
    try:
        with layers.tracing_for(topology.devices[0].platform):
            compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(str(error))
        if refused is None:
            raise
        # What the compiler names is the program alone; its arguments are what it was given.
        row["memory"] = dict(arguments=sum(kinds.values())) | refused
        row["refusal"] = str(error)[:4000]
        row["limit"] = min(row["memory"].pop("limit"), limit or float("inf"))
    else:
        row["memory"], row["limit"] = memory_of(program, compiled), limit
        row.update(_work(program, compiled, topology))
    row["compile_seconds"] = time.perf_counter() - start
    row["fits"] = None if row["limit"] is None else row["memory"]["total"] <= row["limit"]
    row["advice"] = advice(row, config, topology)
    return row


def _work(program: programs.Program, compiled: jax.stages.Compiled, topology: topologies.Topology) -> dict[str, Any]:
    cost = hlo.cost_of(compiled.as_text(), program.rounds)
    bounds = {}
    if topology.flops and topology.bandwidth:
        bounds = dict(compute=cost.flops / topology.flops, memory=cost.bytes / topology.bandwidth)
    return dict(
        flops=cost.flops,
        bytes=cost.bytes,
        collectives=cost.collectives,
        bound_seconds=bounds,
        xla_loops_once=hlo.xla_numbers(compiled),
        unknown_loops=cost.unknown_loops,
    )


def advice(row: dict[str, Any], config: ml_collections.ConfigDict, topology: topologies.Topology) -> list[str]:
    """What to change where a program does not fit, the largest gain first; nothing where it does."""
    if row["fits"] is not False:
        return []
    kind, _, part = row["program"].partition("/")
    over = row["memory"]["total"] - row["limit"]
    lines = {"train": _training_advice, "sample": _sampling_advice, "decode": _decoding_advice}[kind](
        row, part, config, topology
    )
    return [f"{gib(over)} too much", *lines]


def _training_advice(row: dict[str, Any], part: str, config: Any, topology: topologies.Topology) -> list[str]:
    held, mesh, settings = row["held"], row["settings"]["mesh"], row["settings"]
    state = sum(held.get(name, 0.0) for name in ("parameters", "average", "optimizer"))
    temporaries = row["memory"].get("temporaries", row["memory"]["total"] - row["memory"]["arguments"])
    lines = []
    devices = len(topology.devices)
    if mesh["fsdp"] < devices and state > 0.2 * row["limit"]:
        share = state * mesh["fsdp"] / devices
        lines.append(
            f"--config.mesh.fsdp={devices}: parameters, average and optimiser from {gib(state)} to about {gib(share)}"
        )
    if settings["remat"] != "blocks":
        field = "unet" if part.endswith("denoiser") else "vae"
        lines.append(f"--config.{field}.remat=blocks: of {gib(temporaries)} temporaries keeps what lies between blocks")
    if settings["clips_a_device"] > 1:
        # The fewest micro-batches that leave each device one clip less, in whole divisors.
        accumulate = next(
            a
            for a in range(settings["accumulate"] + 1, settings["batch_size"] + 1)
            if settings["batch_size"] % a == 0 and (settings["batch_size"] // a) % (mesh["data"] * mesh["fsdp"]) == 0
        )
        lines.append(
            f"--config.train.{part}.accumulate={accumulate}: {settings['batch_size'] // accumulate} clips at a time; "
            f"temporaries from {gib(temporaries)} to about {gib(temporaries * settings['accumulate'] / accumulate)}"
        )
    if settings["dtype"] == "float32":
        lines.append(f"--config.train.{part}.dtype=bfloat16: activations of half the size")
    if settings["clips_a_device"] <= 1:
        lines.append(
            "a device has one clip already: more memory a chip, --config.mesh.model=2 (columns of attention and "
            f"feed-forward), or fewer frames (--config.train.{part}.clip_length)"
        )
    return lines


def _sampling_advice(row: dict[str, Any], part: str, config: Any, topology: topologies.Topology) -> list[str]:
    del part, topology
    held, settings, memory = row["held"], row["settings"], row["memory"]
    lines = []
    temporaries = memory.get("temporaries", memory["total"] - memory["arguments"])
    if settings["microbatch"] > 1:
        lines.append(
            f"--config.hierarchy.microbatch={settings['microbatch'] // 2}: temporaries from {gib(temporaries)} to "
            f"about {gib(temporaries / 2)}"
        )
    if settings["rounds"] > 1:
        chunk = settings["segments_a_call"] // settings["rounds"]
        lines.append(f"--config.hierarchy.chunk={chunk}: one round a call; segments from {gib(held['segments'])} less")
    if settings["guidance"] not in (0.0, 1.0):
        lines.append("--config.sampler.guidance=1 at this level: the denoiser sees half as many segments at once")
    lines.append("more memory a chip: every chip holds the networks whole")
    return lines


def _decoding_advice(row: dict[str, Any], part: str, config: Any, topology: topologies.Topology) -> list[str]:
    del part, config, topology
    frames = row["settings"]["frames"]
    return [f"decode fewer frames at a time than {frames} (hierarchy/decode.py, WINDOW), or on a chip with more memory"]


def gib(value: float | None) -> str:
    """'12.3 GiB', or MiB below a tenth."""
    if value is None:
        return "?"
    return f"{value / GIB:.1f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.1f} MiB"


def count(value: float) -> str:
    """'1.23 T' of 1.23e12."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def text(row: dict[str, Any]) -> str:
    """Some lines about one program."""
    if "error" in row:
        return f"{row['program']}: {row['error']}"
    memory = row["memory"]
    verdict = {True: "fits", False: "DOES NOT FIT", None: "limit unknown"}[row["fits"]]
    kinds = ", ".join(f"{name} {gib(memory[name])}" for name in memory if name != "total" and memory[name] >= 2**16)
    held = ", ".join(f"{name} {gib(value)}" for name, value in row["held"].items() if value >= 2**16)
    lines = [
        f"{row['program']}: {verdict}, {gib(memory['total'])} of {gib(row['limit'])} a device"
        f" (compiled in {row['compile_seconds']:.0f} s)",
        f"  memory      {kinds}",
        f"  held        {held}",
    ]
    if "flops" in row:
        lines.append(
            f"  work        {count(row['flops'])}FLOP, {count(row['bytes'])}B read and written, a device and call"
        )
        bounds = row["bound_seconds"]
        if bounds:
            lines.append(
                f"  not below   {max(bounds.values()):.3g} s by published peaks (compute {bounds['compute']:.3g} s, "
                f"memory {bounds['memory']:.3g} s); a bound, not a measurement"
            )
        made = ", ".join(
            f"{name} {c['count']:.0f} x ({count(c['bytes'])}B)" for name, c in sorted(row["collectives"].items())
        )
        lines.append(f"  collectives {made or 'none'}")
    return "\n".join([*lines, *(f"  change      {line}" for line in row["advice"])])
