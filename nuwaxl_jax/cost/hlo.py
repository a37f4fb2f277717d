"""A compiled program's text, read: products, traffic and collectives of one device, loops counted as often as they run.

XLA's own cost analysis counts a loop's body once, however often it runs; a sampler and gradient accumulation are loops.
So the text of the optimised program is walked from its entry: a computation's multiplicity is the sum over its callers,
and a loop multiplies by its trip count, which XLA writes beside it. A loop of unknown length (the rounds of a level)
multiplies by a given number.

    flops   2 x multiply-adds of matrix products and convolutions (taps that fall on padding not counted)
    bytes   what instructions outside fusions read and write in the main memory: operands once, results once; slices
            and updates in place count the slice. An array in a TPU's on-chip memory (layout `S(1)`) counts nothing.
    collectives   by type: how often they run, and the bytes of the larger of operands and results of one device
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, Iterator

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "f4e2m1fn": 0.5, "s2": 0.25, "u2": 0.25, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=\s]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_TRIPS = re.compile(r'known_trip_count\\?"?[:=]\s*\{\s*\\?"?n\\?"?:\s*\\?"?(\d+)')
# Attributes that name computations which run, and those of which each is run at most once.
_CALLS = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
# Instructions that move nothing: names, views, and those whose work is counted elsewhere.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "opt-barrier add-dependency async-start async-update async-done copy-done".split()
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: bytes, sizes, and whether it lies in main memory."""

    dtype: str
    sizes: tuple[int, ...]
    main_memory: bool

    @property
    def bytes(self) -> float:
        width = _BYTES.get(self.dtype)
        if width is None:
            digits = re.search(r"\d+", self.dtype)
            width = int(digits.group()) / 8 if digits else 0
        return float(np.prod(self.sizes, dtype=np.float64)) * width


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the text."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    number: int = -1  # of a parameter; the value of an integer constant

    @property
    def bytes(self) -> float:
        return sum(a.bytes for a in self.arrays)

    @property
    def traffic(self) -> float:
        return sum(a.bytes for a in self.arrays if a.main_memory)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    def operand(self, instruction: Instruction, index: int) -> Instruction | None:
        """The instruction that makes an operand."""
        if index >= len(instruction.operands):
            return None
        return self.instructions.get(instruction.operands[index])

    @functools.cached_property
    def root(self) -> Instruction | None:
        return next((i for i in self.instructions.values() if i.root), None)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        out: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in instruction.operands:
                out.setdefault(name, []).append(instruction)
        return out


@dataclasses.dataclass(frozen=True)
class Cost:
    """See the module. Numbers of one device and one run of the program."""

    flops: float
    bytes: float
    collectives: dict[str, dict[str, float]]
    unknown_loops: int  # whose trip count the text does not tell


def _balanced(text: str, start: int) -> int:
    """Index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


def _arrays(shape: str) -> tuple[Array, ...]:
    out = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        numbers = tuple(int(re.sub(r"\D", "", s)) for s in sizes.split(",") if s.strip())
        space = re.search(r"S\((\d+)\)", layout)
        out.append(Array(dtype, numbers, space is None or space.group(1) == "0"))
    return tuple(out)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    name, rest = match.groups()
    end = _balanced(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = _balanced(rest, opening)
    inside, opcode = rest[opening + 1 : closing - 1], rest[:opening].strip()
    number = int(inside) if opcode in ("parameter", "constant") and inside.strip().isdigit() else -1
    # Operands may carry their shapes; names follow a % in every dialect that prints shapes.
    names = re.findall(r"%([\w.\-]+)", inside) or [n.strip() for n in inside.split(",") if n.strip()]
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=_arrays(shape),
        operands=() if opcode in ("parameter", "constant") else tuple(names),
        attributes=rest[closing:],
        root=line.lstrip().startswith("ROOT "),
        number=number,
    )


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name) of `compiled.as_text()`.

    Raises:
      ValueError: a text without an entry.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).split("\n"):
        if current is None:
            start = _COMPUTATION.match(line)
            if start:
                current = start.group(2), {}
                entry = current[0] if start.group(1) else entry
        elif line.startswith("}"):
            computations[current[0]] = Computation(*current)
            current = None
        else:
            instruction = _instruction(line)
            if instruction is not None:
                current[1][instruction.name] = instruction
    if entry not in computations:
        raise ValueError("the program's text has no entry computation; is it compiled.as_text()?")
    return computations, entry


def _trips(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """How often a while loop runs: as XLA notes it, or the bound of a condition `i < constant`."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    body = computations.get(condition.group(1)) if condition else None
    if body is None or body.root is None or "direction=LT" not in body.root.attributes:
        return None
    bound = body.operand(body.root, 1)
    return bound.number if bound is not None and bound.opcode == "constant" and bound.number >= 0 else None


def _callees(
    computations: dict[str, Computation], instruction: Instruction, unknown: float
) -> Iterator[tuple[str, float, bool]]:
    """(computation, how often, whether inside a fusion) that an instruction runs, once or in a loop."""
    if instruction.opcode == "while":
        trips = _trips(computations, instruction)
        body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)
        yield body.group(1), unknown if trips is None else trips, False
    elif instruction.opcode == "conditional":
        for many, one in _BRANCHES.findall(instruction.attributes):
            for name in re.findall(r"[\w.\-]+", many or one):
                yield name, 1, False
    elif instruction.opcode in ("fusion", "call", "async-start", "custom-call"):
        for names in _CALLS.findall(instruction.attributes):
            for name in re.findall(r"[\w.\-]+", names):
                yield name, 1, instruction.opcode in ("fusion", "custom-call")


def _multiplicities(
    computations: dict[str, Computation], entry: str, unknown: float
) -> tuple[dict[str, float], set[str]]:
    """How often each computation runs, and which lie inside fusions."""
    times, fused = {}, set()
    order, seen = [], set()

    def visit(name: str) -> None:  # callees before callers
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name].instructions.values():
            for callee, _, _ in _callees(computations, instruction, unknown):
                visit(callee)
        order.append(name)

    visit(entry)
    times[entry] = 1.0
    for name in reversed(order):
        for instruction in computations[name].instructions.values():
            for callee, count, inside in _callees(computations, instruction, unknown):
                if callee in computations:
                    times[callee] = times.get(callee, 0.0) + times[name] * count
                    if inside or name in fused:
                        fused.add(callee)
    return times, fused


def _window(attributes: str, rank: int) -> dict[str, list[int]]:
    """size, stride, pad (low), lhs_dilate, rhs_dilate of a convolution, one entry a spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(re.findall(r"(\w+)=([\d\-x_]+)", found.group(1))) if found else {}
    out = {}
    for name, default in (("size", 1), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1), ("pad", 0)):
        values = fields[name].split("x") if name in fields else [str(default)] * rank
        out[name] = [int(value.split("_")[0]) for value in values]
    return out


def _valid_taps(size: int, window: dict[str, list[int]], d: int, outputs: int) -> int:
    """Pairs (output, tap) of one spatial dimension whose input exists."""
    dilation = window["lhs_dilate"][d]
    at = np.arange(outputs)[:, None] * window["stride"][d] - window["pad"][d]
    at = at + np.arange(window["size"][d])[None] * window["rhs_dilate"][d]
    extent = (size - 1) * dilation + 1
    return int(np.count_nonzero((at >= 0) & (at < extent) & (at % dilation == 0)))


def _convolution_flops(instruction: Instruction, left: Array, right: Array) -> float:
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    if not labels:
        return 0.0
    lhs, rhs, out = labels.groups()
    spatial = [c for c in lhs if c.isdigit()]
    window = _window(instruction.attributes, len(spatial))
    result = instruction.arrays[0].sizes
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = left.sizes[lhs.index("b")] // (int(groups.group(1)) if groups else 1)
    taps = 1.0
    for d, label in enumerate(spatial):
        taps *= _valid_taps(left.sizes[lhs.index(label)], window, d, result[out.index(label)])
    return 2.0 * taps * batch * right.sizes[rhs.index("i")] * right.sizes[rhs.index("o")]


def _flops(computation: Computation, instruction: Instruction) -> float:
    """Of one matrix product or convolution."""
    left, right = (computation.operand(instruction, i) for i in (0, 1))
    if left is None or right is None or not left.arrays or not right.arrays or not instruction.arrays:
        return 0.0
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, left.arrays[0], right.arrays[0])
    sizes = left.arrays[0].sizes
    if instruction.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [sizes[int(d)] for d in dims.group(1).split(",") if d] if dims else []
        return 2.0 * float(np.prod(instruction.arrays[0].sizes, dtype=np.float64)) * float(np.prod(contracted))
    if instruction.opcode == "custom-call" and re.search(
        r'custom_call_target="[^"]*(matmul|gemm)', instruction.attributes
    ):
        return 2.0 * float(np.prod(instruction.arrays[0].sizes, dtype=np.float64)) * sizes[-1]
    return 0.0


def _sliced(computation: Computation, name: str, whole: float) -> float:
    """What is read of a fused parameter: all of it, or only what slices take."""
    users = computation.users.get(name, [])
    if users and all(u.opcode in ("dynamic-slice", "gather", "slice") and u.operands[0] == name for u in users):
        return min(whole, sum(u.bytes for u in users))
    if users and all(u.opcode == "dynamic-update-slice" and u.operands[0] == name for u in users):
        return 0.0  # updated in place
    return whole


def _traffic(computations: dict[str, Computation], computation: Computation, instruction: Instruction) -> float:
    """Bytes that one instruction outside fusions reads and writes in main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    made = [computation.operand(instruction, i) for i in range(len(instruction.operands))]
    reads = [0.0 if m is None else m.traffic for m in made]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * instruction.traffic
    if opcode == "dynamic-update-slice":
        return 2.0 * (reads[1] if len(reads) > 1 else 0.0)
    if opcode == "copy-start":  # returns (target, source, ..)
        return sum(reads) + (instruction.arrays[0].bytes if instruction.arrays[0].main_memory else 0.0)
    if opcode.endswith("-start"):  # returns its operands too
        return max(sum(reads), instruction.traffic)
    if opcode != "fusion":
        return sum(reads) + instruction.traffic
    called = next((computations[n] for n, _, _ in _callees(computations, instruction, 1) if n in computations), None)
    if called is None:
        return sum(reads) + instruction.traffic
    parameters = {p.number: p.name for p in called.instructions.values() if p.opcode == "parameter"}
    read = sum(_sliced(called, parameters[i], r) if i in parameters else r for i, r in enumerate(reads))
    root = called.root
    while root is not None and root.opcode in ("bitcast", "convert", "copy"):
        root = called.operand(root, 0)
    if root is not None and root.opcode == "dynamic-update-slice":
        update = called.operand(root, 1)
        return read + (update.bytes if update is not None else 0.0)
    return read + instruction.traffic


def _payload(computation: Computation, instruction: Instruction) -> float:
    """Bytes of the larger of a collective's operands and results; a '-start' returns both."""
    made = (computation.operand(instruction, i) for i in range(len(instruction.operands)))
    operands = sum(m.bytes for m in made if m is not None)
    result = instruction.bytes
    if instruction.opcode.endswith("-start") and len(instruction.arrays) > len(instruction.operands):
        result -= operands
    return max(operands, result)


def cost_of(text: str, unknown_trips: float = 1.0) -> Cost:
    """The cost of a program from `compiled.as_text()`.

    Args:
      unknown_trips: how often a loop runs whose length the text does not tell.

    Raises:
      ValueError: not the text of a program.
    """
    computations, entry = parse(text)
    times, fused = _multiplicities(computations, entry, unknown_trips)
    flops = traffic = 0.0
    unknown = 0
    collectives: dict[str, dict[str, float]] = {}
    for name, count in times.items():
        computation = computations[name]
        for instruction in computation.instructions.values():
            flops += count * _flops(computation, instruction)
            unknown += instruction.opcode == "while" and _trips(computations, instruction) is None
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                entry_of = collectives.setdefault(kind, {"count": 0.0, "bytes": 0.0})
                entry_of["count"] += count
                entry_of["bytes"] += count * _payload(computation, instruction)
            if name not in fused:
                traffic += count * _traffic(computations, computation, instruction)
    return Cost(flops, traffic, collectives, unknown)


def xla_numbers(compiled: Any) -> dict[str, float]:
    """XLA's own {'flops', 'bytes'}, a loop's body counted once; empty where the backend tells nothing."""
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, (list, tuple)) and cost else cost
    names = {"flops": "flops", "bytes": "bytes accessed"}
    return {name: float(cost[key]) for name, key in names.items() if cost and key in cost}
