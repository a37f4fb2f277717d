"""Whether a program has grown: a new report's memory and collectives against those of a stored one.

Watched are bytes a device: the memory in all, its arguments and temporaries, and what each kind of collective moves.
Less is never a growth; a kind of collective that was not there always is one.
"""

from __future__ import annotations

from typing import Any, Mapping

from nuwaxl_jax.cost import report

LIMIT = 0.05  # of the stored value
_MEMORY = ("total", "arguments", "temporaries")
_VERSIONS = ("jax", "jaxlib", "libtpu")


def watched(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a `report.measure` is compared: name -> bytes a device."""
    memory = {f"memory, {name}": row["memory"][name] for name in _MEMORY if name in row["memory"]}
    return memory | {f"{kind}, bytes": made["bytes"] for kind, made in row.get("collectives", {}).items()}


def growths(label: str, stored: Mapping[str, Any] | None, new: Mapping[str, Any], renew: str) -> list[str]:
    """What grew, a line each; none where nothing did.

    Args:
      label: of the program, for the lines.
      stored: the row of before; None: there is none.
      new: the row of now.
      renew: the command that stores the row of now, for the lines.
    """
    if stored is None:
        return [f"{label}: nothing is stored to compare with; store it: {renew}"]
    if "error" in new or "error" in stored:
        if new.get("error") == stored.get("error"):
            return []
        return [f"{label}: {new.get('error', 'compiles')}, and before: {stored.get('error', 'compiled')}; {renew}"]
    if "refusal" in new and "refusal" not in stored:
        return [f"{label}: the compiler refuses it now, {report.gib(new['memory']['total'])} a device; {renew}"]
    if "refusal" in stored and "refusal" not in new:
        return []
    before, lines = watched(stored), []
    for name, value in watched(new).items():
        was = before.get(name, 0.0)
        if value > was * (1 + LIMIT):
            more = f"{100 * (value / was - 1):.1f} % more than {size(was)}" if was else "where there was none"
            lines.append(f"{label}: {name}: {size(value)} a device, {more}; if it must be: {renew}")
    return lines


def size(value: float) -> str:
    """'12.35 MB', in decimal units: a growth of a few percent must show."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.0f} B"


def other_versions(stored: Mapping[str, str], new: Mapping[str, str]) -> str:
    """'' where two rows' compilers are the same (libtpu's last number apart), else what differs."""
    pairs = [(name, stored.get(name, "none"), new.get(name, "none")) for name in _VERSIONS]
    return ", ".join(f"{name} {b}, stored with {a}" for name, a, b in pairs if a.split(".")[:3] != b.split(".")[:3])
