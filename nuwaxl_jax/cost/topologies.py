"""The devices that programs are compiled for: those of this machine, or TPUs described by name, without having them.

    v5e:4x4   the compiler's own name: generation and chips along each axis
    v5e-16    the cloud's: v5e and v6e count chips, v2 to v5p and 7x count cores, two a chip

Peak figures are those published on cloud.google.com/tpu/docs (read in 2026), a chip. What a program may use of a chip's
memory is less: the compiler says how much when a program does not fit (`usable_gib`, libtpu 0.0.42).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

GIB = 2**30
LOCAL = "local"


class TopologyError(ValueError):
    """One line: the topology, what is wrong, the mend."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      cores: TensorCores a chip.
      devices: of JAX a chip; two cores may be one device.
      hbm_gib: memory a chip, published.
      usable_gib: of it, what the compiler gives to programs.
      bf16_tflops: published peak a chip, 10^12 / s.
      hbm_gbps: published memory bandwidth a chip, 10^9 bytes / s.
      shapes: chips -> the axes of the usual slice.
      options: of the topology's description.
    """

    cores: int
    devices: int
    hbm_gib: float
    usable_gib: float
    bf16_tflops: float
    hbm_gbps: float
    shapes: dict[int, str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
CHIPS = {
    "v3": Chip(2, 2, 32, 30.96, 123, 900, {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}),
    "v4": Chip(2, 1, 32, 30.75, 275, 1200, _DEEP, {"chip_config_name": "megacore"}),
    "v5e": Chip(1, 1, 16, 15.75, 197, 819, _FLAT),
    "v5p": Chip(2, 1, 95, 95.74, 459, 2765, _DEEP),
    "v6e": Chip(1, 1, 32, 31.25, 918, 1638, _FLAT),
    "tpu7x": Chip(2, 2, 192, 189.5, 2307, 7380, _DEEP),
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v5": "v5p", "v7x": "tpu7x"}
# The names of `device_kind` of attached TPUs.
_KINDS = {"TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}

# bf16, dense, of NVIDIA's data sheets (read in 2026), by part of `device_kind`; the first that fits.
_GPU_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
}


# For libtpu, before it is loaded: ask no cloud about this machine, share the library with other processes, be quiet.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for; figures are a device's.

    Attributes:
      name: as asked for.
      devices: of JAX, attached or described.
      chips: how many.
      limit: bytes that one program may use; None: unknown.
      flops, bandwidth: published peaks, bf16 operations and bytes a second; None: unknown.
    """

    name: str
    devices: tuple[Any, ...]
    chips: int
    limit: float | None
    flops: float | None
    bandwidth: float | None

    @property
    def described(self) -> bool:
        """Whether the devices are only described, not attached."""
        return self.name != LOCAL


def known() -> str:
    """What `describe` knows, for a message."""
    return f"{', '.join(CHIPS)} with a shape (v5e:4x4, v5p:2x4x4), or the cloud's names (v5e-16, v5p-64)"


def resolve(name: str) -> tuple[str, str]:
    """(generation, shape) of a name, such as ('v5e', '4x4') of v5e-16.

    Raises:
      TopologyError: naming what is known.
    """
    match = re.fullmatch(r"([a-z0-9]+?)(?::(\d+(?:x\d+){1,2})|-(\d+))", name.strip().lower())
    generation = _ALIASES.get(match.group(1), match.group(1)) if match else ""
    if generation not in CHIPS:
        raise TopologyError(f"--topology: {name!r} is unknown; known: {known()}")
    if match.group(2):
        return generation, match.group(2)
    chip = CHIPS[generation]
    per_chip = chip.cores if chip.cores > 1 else 1  # the cloud counts cores where a chip has two
    shape = chip.shapes.get(int(match.group(3)) // per_chip)
    if shape is None or int(match.group(3)) % per_chip:
        sizes = ", ".join(f"{generation}-{count * per_chip}" for count in chip.shapes)
        axes = "AxB" if chip.shapes is _FLAT else "AxBxC"
        raise TopologyError(f"--topology: {name!r} is no usual slice; give its shape ({generation}:{axes}), or {sizes}")
    return generation, shape


def describe(name: str) -> Topology:
    """The devices of a name; '' or 'local' are this machine's. A described one needs libtpu, and no TPU.

    Raises:
      TopologyError: an unknown name, a shape that the compiler refuses, or no libtpu.
    """
    if name in ("", LOCAL):
        return _local()
    generation, shape = resolve(name)
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(f"--topology: {name} needs the TPU compiler libtpu; pip install '.[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    chip = CHIPS[generation]
    try:
        devices = topologies.get_topology_desc(f"{generation}:{shape}", "tpu", **chip.options).devices
    except Exception as error:  # the compiler's own error types are private
        problem = " ".join(str(error).split())[:200]
        raise TopologyError(f"--topology: {name} is refused by the compiler ({problem}); known: {known()}") from error
    return _of_chips(name, tuple(devices), generation)


def _of_chips(name: str, devices: tuple[Any, ...], generation: str) -> Topology:
    chip = CHIPS[generation]
    return Topology(
        name=name,
        devices=devices,
        chips=len(devices) // chip.devices,
        limit=chip.usable_gib * GIB / chip.devices,
        flops=chip.bf16_tflops * 1e12 / chip.devices,
        bandwidth=chip.hbm_gbps * 1e9 / chip.devices,
    )


def peak_flops() -> float | None:
    """Published bf16 peak of one of this machine's devices, dense, operations a second; None: not known."""
    device = jax.devices()[0]
    if device.device_kind in _KINDS:
        return _of_chips(LOCAL, (device,), _KINDS[device.device_kind]).flops
    return next((tflops * 1e12 for kind, tflops in _GPU_TFLOPS.items() if kind in device.device_kind), None)


def _local() -> Topology:
    devices = tuple(jax.devices())
    generation = _KINDS.get(devices[0].device_kind)
    if generation:
        return _of_chips(LOCAL, devices, generation)
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    limit = (stats or {}).get("bytes_limit")
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)  # they share the machine's
    return Topology(LOCAL, devices, len(devices), limit, None, None)
