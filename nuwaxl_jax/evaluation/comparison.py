"""Results side by side, of one protocol: `--mode=compare`."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

Record = Mapping[str, Any]


class ProtocolError(ValueError):
    """Figures that cannot be compared; one line says what differs."""


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Lines 'field: value, value' where two protocols differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            yield from differences(one.get(name), other.get(name), f"{at}.{name}" if at else name)
    elif one != other:
        yield f"{at}: {_short(one)}, {_short(other)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:50]} ..."


def check(metric: str, one: Record, other: Record) -> None:
    """Raises ProtocolError where the two records of a metric were not measured alike."""
    found = list(differences(one["protocol"], other["protocol"]))
    if found:
        raise ProtocolError(f"{metric}: other protocols, so the figures cannot be compared; {'; '.join(found)}")


def read(path: str | os.PathLike) -> dict[str, dict[str, Record]]:
    """way -> metric -> record, of an evaluation's file or folder."""
    path = pathlib.Path(path)
    places = (path / folder / f"{name}.json" for name in ("eval", "score") for folder in (name, ""))
    path = next((p for p in places if p.is_file()), path)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(
            f"{path} holds no eval.json; give a folder that --mode=eval or --mode=score has written to"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of --mode=eval with metrics ({error!r})") from error
    if not isinstance(metrics, dict) or not metrics or not all(isinstance(row, dict) for row in metrics.values()):
        raise ValueError(f"{path} holds no metrics; evaluate at least 2 stories")
    return metrics


def table(named: Mapping[str, Mapping[str, Record]]) -> str:
    """Text, a row a metric and a column a result, values with their intervals.

    Args:
      named: label -> metric -> record.

    Raises:
      ProtocolError: two records of a metric were not measured alike.
    """
    rows = [["", *named]]
    for metric in dict.fromkeys(metric for records in named.values() for metric in records):
        first, *others = [records[metric] for records in named.values() if metric in records]
        for other in others:
            check(metric, first, other)
        rows.append([metric, *(_cell(records.get(metric)) for records in named.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
    return "\n".join(lines)


def _cell(record: Record | None) -> str:
    if record is None:
        return "-"
    value = f"{record['value']:.4g}"
    return f"{value} [{record['interval'][0]:.4g}, {record['interval'][1]:.4g}]" if record["interval"] else value


def run(paths: Sequence[str]) -> None:
    """Prints the table of several evaluations, all their ways.

    Raises:
      ValueError: a file that cannot be read; ProtocolError: see `table`.
    """
    if not paths:
        raise ValueError("--records is empty; give folders of evaluations, with commas between")
    named = {}
    for path in paths:
        for way, records in read(path).items():
            named[f"{path}: {way}" if len(paths) > 1 else way] = records
    print(table(named))
